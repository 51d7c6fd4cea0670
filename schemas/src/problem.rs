//! What a client is told when something is wrong: a stable code, a sentence, and nothing of the inside.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal $status:literal),* $(,)?) => {
        /// A stable error code (S2 "Errors", and ours).
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Code { $($(#[$doc])* $name),* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// As clients see it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// The HTTP status that goes with it.
            pub fn status(self) -> StatusCode {
                let number = match self { $(Self::$name => $status),* };
                StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }

            /// Reads a name.
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|code| code.name() == text)
            }
        }
    };
}

codes! {
    /// A body field is missing or malformed.
    InvalidRequest = "INVALID_REQUEST" 400,
    /// A path or query parameter does not parse.
    InvalidParam = "INVALID_PARAM" 400,
    /// A required parameter, or the whole body, is missing.
    MissingParam = "MISSING_PARAM" 400,
    /// The From is on no verified identity.
    FromNotVerified = "FROM_NOT_VERIFIED" 400,
    /// A recipient is not an address.
    BadRecipient = "BAD_RECIPIENT" 400,
    /// More recipients than a call may have.
    TooManyRecipients = "TOO_MANY_RECIPIENTS" 400,
    /// The account has as many configuration sets as it may.
    ConfigSetLimitReached = "CONFIG_SET_LIMIT_REACHED" 400,
    /// The set has as many destinations as it may.
    DestinationLimitReached = "DESTINATION_LIMIT_REACHED" 400,
    /// As many replays run as may at once.
    ReplayLimitReached = "REPLAY_LIMIT_REACHED" 400,
    /// No `Authorization` header.
    MissingAuth = "MISSING_AUTH" 401,
    /// The key has not the form of one.
    InvalidKeyFormat = "INVALID_KEY_FORMAT" 401,
    /// The key was revoked or never existed.
    KeyNotFound = "KEY_NOT_FOUND" 401,
    /// The account is suspended, or the key is past its time.
    KeyInactive = "KEY_INACTIVE" 401,
    /// The caller's address is not on the account's list.
    IpBlocked = "IP_BLOCKED" 403,
    /// The key is not for this (RFC 6750 §3.1).
    InsufficientScope = "INSUFFICIENT_SCOPE" 403,
    /// The account is on legal hold: nothing may be erased.
    LegalHold = "LEGAL_HOLD" 409,
    /// As many recipients are being erased as may be at once.
    ErasureLimitReached = "ERASURE_LIMIT_REACHED" 429,
    /// The account is paused.
    SendingPaused = "SENDING_PAUSED" 403,
    /// The sandbox's daily cap is reached.
    SandboxQuotaReached = "SANDBOX_QUOTA_REACHED" 403,
    /// No such account.
    PartnerNotFound = "PARTNER_NOT_FOUND" 404,
    /// No such identity.
    IdentityNotFound = "IDENTITY_NOT_FOUND" 404,
    /// No such configuration set.
    ConfigSetNotFound = "CONFIG_SET_NOT_FOUND" 404,
    /// No such message.
    MessageNotFound = "MESSAGE_NOT_FOUND" 404,
    /// No such thing.
    NotFound = "NOT_FOUND" 404,
    /// Not with this method.
    MethodNotAllowed = "METHOD_NOT_ALLOWED" 405,
    /// The request took too long to arrive.
    RequestTimeout = "REQUEST_TIMEOUT" 408,
    /// The identity exists.
    IdentityExists = "IDENTITY_EXISTS" 409,
    /// The name is taken.
    ConfigSetNameTaken = "CONFIG_SET_NAME_TAKEN" 409,
    /// The `Idempotency-Key` was used with another body.
    IdempotencyMismatch = "IDEMPOTENCY_MISMATCH" 409,
    /// The body is too large, compressed or not.
    PayloadTooLarge = "PAYLOAD_TOO_LARGE" 413,
    /// The body is of a type that is not read here.
    UnsupportedMediaType = "UNSUPPORTED_MEDIA_TYPE" 415,
    /// Faster than the account may.
    RateLimited = "RATE_LIMITED" 429,
    /// The daily cap of a production account is reached.
    DailyLimitReached = "DAILY_LIMIT_REACHED" 429,
    /// A fault of ours.
    InternalError = "INTERNAL_ERROR" 500,
    /// The log, the store or the analytics are out.
    DbUnavailable = "DB_UNAVAILABLE" 503,
    /// Overload, or shutting down; with Retry-After.
    Unavailable = "UNAVAILABLE" 503,
}

/// An error as a client sees it: `{"success":false,"error":CODE,"message":…}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The stable code.
    pub code: Code,
    /// For people; may change.
    pub message: String,
    /// Whole seconds for a Retry-After header.
    pub retry_after: Option<u64>,
}

impl Problem {
    /// A problem with a sentence for people.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: None }
    }

    /// With a Retry-After of whole seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Overload or shutdown: the same request may succeed in a second.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message).retry_after(1)
    }

    /// A fault of ours; what it was is in the log, not here.
    pub fn internal() -> Self {
        Self::new(Code::InternalError, "something went wrong on our side; the log knows more")
    }

    /// The body that clients see.
    pub fn body(&self) -> Body<'_> {
        Body { success: false, error: self.code.name(), message: &self.message }
    }
}

/// The JSON of a problem.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct Body<'a> {
    /// False.
    success: bool,
    /// The stable code.
    error: &'a str,
    /// For people; may change.
    message: &'a str,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // Strings always serialize.
        let body = serde_json::to_vec(&self.body()).unwrap_or_default();
        let mut response = (self.code.status(), [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        // For surfaces that tell it in another form.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_read_back() {
        for code in Code::ALL {
            assert_eq!(Code::parse(code.name()), Some(*code));
            assert!(code.status().is_client_error() || code.status().is_server_error());
        }
        assert_eq!(Code::parse("NOPE"), None);
    }

    #[test]
    fn a_problem_is_the_body_of_the_contract() {
        let response = Problem::new(Code::RateLimited, "slow down").retry_after(3).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "3");
        let body = serde_json::to_string(&Problem::new(Code::RateLimited, "slow down").body()).unwrap();
        assert_eq!(body, r#"{"success":false,"error":"RATE_LIMITED","message":"slow down"}"#);
    }
}
