//! The block of each event type, in Amazon SES's field names.
//!
//! Source: SES "Contents of event data" and S2 "Event Types". What a block does not name is kept in `metadata`.

use serde::{Deserialize, Serialize};

use crate::time::Millis;

/// What a field of a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FieldKind {
    /// Text.
    Text,
    /// A whole number.
    Integer,
    /// Yes or no.
    Flag,
    /// An instant, milliseconds since the epoch.
    Time,
}

/// A value of a field of a block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FieldValue<'a> {
    /// Text.
    Text(std::borrow::Cow<'a, str>),
    /// A whole number, or milliseconds since the epoch.
    Integer(i64),
    /// Yes or no.
    Flag(bool),
}

impl FieldValue<'_> {
    /// The same, borrowed from nobody.
    pub fn into_owned(self) -> FieldValue<'static> {
        match self {
            Self::Text(text) => FieldValue::Text(text.into_owned().into()),
            Self::Integer(number) => FieldValue::Integer(number),
            Self::Flag(flag) => FieldValue::Flag(flag),
        }
    }

    /// The text, if it is one.
    pub fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.into_owned()),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub fn integer(self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(number),
            _ => None,
        }
    }
}

/// A row of named fields, for columns.
pub trait Fields: Default {
    /// Names, as in JSON, and kinds.
    const FIELDS: &'static [(&'static str, FieldKind)];
    /// Calls `put` once for each field, in order.
    fn read(&self, put: &mut dyn FnMut(Option<FieldValue<'_>>));
    /// Calls `take` once for each field, in order, and keeps what it gives.
    fn write(&mut self, take: &mut dyn FnMut() -> Option<FieldValue<'static>>);
}

macro_rules! block {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident : $kind:ident = $tag:literal $json:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, prost::Message, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $name {
            $(
                $(#[$fdoc])*
                #[prost($kind, optional, tag = $tag)]
                #[serde(rename = $json, skip_serializing_if = "Option::is_none")]
                pub $field: Option<block!(@type $kind)>,
            )*
        }

        impl Fields for $name {
            const FIELDS: &'static [(&'static str, FieldKind)] = &[$(($json, block!(@kind $kind))),*];

            fn read(&self, put: &mut dyn FnMut(Option<FieldValue<'_>>)) {
                $(put(self.$field.as_ref().map(|value| block!(@value $kind value)));)*
            }

            fn write(&mut self, take: &mut dyn FnMut() -> Option<FieldValue<'static>>) {
                $(self.$field = block!(@back $kind take());)*
            }
        }
    };
    (@type string) => { String };
    (@type int64) => { i64 };
    (@type bool) => { bool };
    (@kind string) => { FieldKind::Text };
    (@kind int64) => { FieldKind::Integer };
    (@kind bool) => { FieldKind::Flag };
    (@value string $value:ident) => { FieldValue::Text($value.as_str().into()) };
    (@value int64 $value:ident) => { FieldValue::Integer(*$value) };
    (@value bool $value:ident) => { FieldValue::Flag(*$value) };
    (@back string $given:expr) => { $given.and_then(FieldValue::text) };
    (@back int64 $given:expr) => { $given.and_then(FieldValue::integer) };
    (@back bool $given:expr) => {
        match $given {
            Some(FieldValue::Flag(flag)) => Some(flag),
            _ => None,
        }
    };
}

block!(
    /// Why a message was refused. `bounce_type` is `Permanent`, `Transient` or `Undetermined`; only the first
    /// suppresses and counts.
    Bounce {
        /// `Permanent`, `Transient` or `Undetermined`.
        bounce_type: string = "1" "bounceType",
        /// `General`, `NoEmail`, `MailboxFull`, … or a provider's own word.
        bounce_sub_type: string = "2" "bounceSubType",
        /// The server's words: "smtp; 550 5.1.1 user unknown".
        diagnostic_code: string = "3" "diagnosticCode",
        /// The enhanced status code (RFC 3463): "5.1.1".
        status: string = "4" "status",
        /// The DSN's action (RFC 3464): "failed".
        action: string = "5" "action",
        /// The server that reported it.
        reporting_mta: string = "6" "reportingMTA",
        /// The address of the server that reported it.
        remote_mta_ip: string = "7" "remoteMtaIp",
        /// The provider's identifier of the report.
        feedback_id: string = "8" "feedbackId",
    }
);

block!(
    /// A recipient called the message spam (RFC 5965).
    Complaint {
        /// `abuse`, `fraud`, `not-spam`, …
        complaint_feedback_type: string = "1" "complaintFeedbackType",
        /// The program that reported it.
        user_agent: string = "2" "userAgent",
        /// `OnAccountSuppressionList` or nothing.
        complaint_sub_type: string = "3" "complaintSubType",
        /// The provider's identifier of the report.
        feedback_id: string = "4" "feedbackId",
        /// When the recipient's provider got the complaint, as given.
        arrival_date: string = "5" "arrivalDate",
    }
);

block!(
    /// The recipient's server accepted the message.
    Delivery {
        /// The server's answer: "250 OK".
        smtp_response: string = "1" "smtpResponse",
        /// From acceptance by the sender to acceptance by the recipient's server, in milliseconds.
        processing_time_millis: int64 = "2" "processingTimeMillis",
        /// The server that sent it.
        reporting_mta: string = "3" "reportingMTA",
        /// The server that took it.
        remote_mta_ip: string = "4" "remoteMtaIp",
    }
);

block!(
    /// The pixel was loaded.
    Open {
        /// From where.
        ip_address: string = "1" "ipAddress",
        /// By which program.
        user_agent: string = "2" "userAgent",
    }
);

block!(
    /// A link was followed.
    Click {
        /// From where.
        ip_address: string = "1" "ipAddress",
        /// By which program.
        user_agent: string = "2" "userAgent",
        /// To where.
        link: string = "3" "link",
    }
);

block!(
    /// We refused to send.
    Reject {
        /// Why: "address on suppression list", …
        reason: string = "1" "reason",
    }
);

block!(
    /// A soft failure that will be tried again.
    DeliveryDelay {
        /// `TemporaryFailure`, `MailboxFull`, …
        delay_type: string = "1" "delayType",
        /// When trying ends, as given.
        expiration_time: string = "2" "expirationTime",
        /// The server that reported it.
        reporting_mta: string = "3" "reportingMTA",
    }
);

block!(
    /// A template could not be rendered.
    RenderingFailure {
        /// Which template.
        template_name: string = "1" "templateName",
        /// What was missing or malformed.
        error_message: string = "2" "errorMessage",
    }
);

block!(
    /// A recipient's answer, in S2's field names.
    Reply {
        /// Our identifier of the message it answers.
        outbox_id: string = "1" "outbox_id",
        /// The recipient of that message.
        original_recipient: string = "2" "original_recipient",
        /// Who answers.
        from: string = "3" "from",
        /// The answer's subject.
        subject: string = "4" "subject",
        /// The answer's own Message-ID.
        message_id: string = "5" "message_id",
        /// Its In-Reply-To.
        in_reply_to: string = "6" "in_reply_to",
        /// Its References.
        references: string = "7" "references",
        /// Its text, cut at 32 KB.
        text_body: string = "8" "text_body",
        /// Its HTML, cut at 64 KB.
        html_body: string = "9" "html_body",
        /// When it came, as given.
        received_at: string = "10" "received_at",
    }
);

block!(
    /// A change of subscription, as SES tells it.
    Subscription {
        /// The contact list.
        contact_list: string = "1" "contactList",
        /// `UnsubscribeHeader`, `SubscriptionManagementPage`, …
        source: string = "2" "source",
        /// Whether the recipient left every topic.
        unsubscribe_all: bool = "3" "unsubscribeAll",
    }
);

impl Subscription {
    /// Whether the recipient left: every topic, or one by a link or header that is there for it. Otherwise the recipient came back,
    /// or chose among topics. One that does not say is taken for leaving: whoever mails on after that is at fault.
    pub fn is_unsubscribe(&self) -> bool {
        let by = self.source.as_deref().unwrap_or_default();
        self.unsubscribe_all != Some(false) || by.starts_with("Unsubscribe")
    }
}

block!(
    /// A change of a webhook's health.
    WebhookChange {
        /// Which.
        destination_id: string = "1" "destination_id",
        /// What its owner calls it.
        name: string = "2" "name",
        /// `working`, `failing` or `disabled`.
        from: string = "3" "from",
        /// The same.
        to: string = "4" "to",
        /// A sentence that tells what happened.
        reason: string = "5" "reason",
        /// Attempts that failed one after the other.
        failed_attempts: int64 = "6" "failed_attempts",
        /// When the first of them ended, RFC 3339.
        failing_since: string = "7" "failing_since",
    }
);

block!(
    /// Something that is not about email, for the account-level webhook (S2 "RCS Events").
    Lifecycle {
        /// Its own name, such as `rcs.message.text`.
        event_type: string = "1" "event_type",
        /// JSON as it came: `data` of the envelope, or the whole body.
        data: string = "2" "data",
        /// Whether `data` is the whole body.
        passthrough: bool = "3" "passthrough",
    }
);

block!(
    /// Who changed what of an account.
    Activity {
        /// What was done: `key.created`, `account.paused`, …
        action: string = "1" "action",
        /// `administrator` or `key`.
        actor: string = "2" "actor",
        /// The key's identifier.
        actor_id: string = "3" "actor_id",
        /// What its owner called it then.
        actor_name: string = "4" "actor_name",
        /// Where the request came from.
        address: string = "5" "address",
        /// To what it was done: an identifier or a name. To an address, that is the event's recipient.
        subject: string = "6" "subject",
        /// What was given, as JSON, without secrets.
        details: string = "7" "details",
    }
);

/// A change of an account's standing, with its evidence.
#[derive(Clone, PartialEq, Eq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusChange {
    /// The status before: `HEALTHY`, `AT_RISK` or `PAUSED`.
    #[prost(string, tag = "1")]
    pub from: String,
    /// The status after.
    #[prost(string, tag = "2")]
    pub to: String,
    /// `bounce_rate`, `complaint_rate`, `manual` or `recovered`.
    #[prost(string, tag = "3")]
    pub rule: String,
    /// Bounces or complaints that were judged.
    #[prost(uint64, tag = "4")]
    pub numerator: u64,
    /// Sends that were judged.
    #[prost(uint64, tag = "5")]
    pub denominator: u64,
    /// The limit that was crossed, in parts per million; 0 for `manual`.
    #[prost(uint32, tag = "6")]
    pub limit_ppm: u32,
    /// Start of the window, milliseconds since the epoch.
    #[prost(int64, tag = "7")]
    #[serde(with = "as_time")]
    pub window_start: i64,
    /// End of the window (exclusive), milliseconds since the epoch.
    #[prost(int64, tag = "8")]
    #[serde(with = "as_time")]
    pub window_end: i64,
    /// The event that crossed the limit; empty for `manual`.
    #[prost(string, tag = "9")]
    pub event_id: String,
    /// What an administrator wrote, or a sentence that tells what happened.
    #[prost(string, tag = "10")]
    pub reason: String,
}

impl Fields for StatusChange {
    const FIELDS: &'static [(&'static str, FieldKind)] = &[
        ("from", FieldKind::Text),
        ("to", FieldKind::Text),
        ("rule", FieldKind::Text),
        ("numerator", FieldKind::Integer),
        ("denominator", FieldKind::Integer),
        ("limit_ppm", FieldKind::Integer),
        ("window_start", FieldKind::Time),
        ("window_end", FieldKind::Time),
        ("event_id", FieldKind::Text),
        ("reason", FieldKind::Text),
    ];

    fn read(&self, put: &mut dyn FnMut(Option<FieldValue<'_>>)) {
        let text = |text| Some(FieldValue::Text(std::borrow::Cow::Borrowed(text)));
        put(text(&self.from));
        put(text(&self.to));
        put(text(&self.rule));
        put(Some(FieldValue::Integer(self.numerator as i64)));
        put(Some(FieldValue::Integer(self.denominator as i64)));
        put(Some(FieldValue::Integer(i64::from(self.limit_ppm))));
        put(Some(FieldValue::Integer(self.window_start)));
        put(Some(FieldValue::Integer(self.window_end)));
        put(text(&self.event_id));
        put(text(&self.reason));
    }

    fn write(&mut self, take: &mut dyn FnMut() -> Option<FieldValue<'static>>) {
        let text = |given: Option<FieldValue<'static>>| given.and_then(FieldValue::text).unwrap_or_default();
        let integer = |given: Option<FieldValue<'static>>| given.and_then(FieldValue::integer).unwrap_or_default();
        self.from = text(take());
        self.to = text(take());
        self.rule = text(take());
        self.numerator = integer(take()) as u64;
        self.denominator = integer(take()) as u64;
        self.limit_ppm = integer(take()) as u32;
        self.window_start = integer(take());
        self.window_end = integer(take());
        self.event_id = text(take());
        self.reason = text(take());
    }
}

mod as_time {
    use super::Millis;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(millis: &i64, serializer: S) -> Result<S::Ok, S::Error> {
        Millis(*millis).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        Millis::deserialize(deserializer).map(|time| time.0)
    }
}

/// One of the blocks; a Send has none.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Block {
    /// See [`Bounce`].
    #[prost(message, tag = "40")]
    Bounce(Bounce),
    /// See [`Complaint`].
    #[prost(message, tag = "41")]
    Complaint(Complaint),
    /// See [`Delivery`].
    #[prost(message, tag = "42")]
    Delivery(Delivery),
    /// See [`Open`].
    #[prost(message, tag = "43")]
    Open(Open),
    /// See [`Click`].
    #[prost(message, tag = "44")]
    Click(Click),
    /// See [`Reject`].
    #[prost(message, tag = "45")]
    Reject(Reject),
    /// See [`DeliveryDelay`].
    #[prost(message, tag = "46")]
    DeliveryDelay(DeliveryDelay),
    /// See [`RenderingFailure`].
    #[prost(message, tag = "47")]
    RenderingFailure(RenderingFailure),
    /// See [`Reply`].
    #[prost(message, tag = "48")]
    Reply(Reply),
    /// See [`Subscription`].
    #[prost(message, tag = "49")]
    Subscription(Subscription),
    /// See [`StatusChange`].
    #[prost(message, tag = "50")]
    StatusChange(StatusChange),
    /// See [`WebhookChange`].
    #[prost(message, tag = "51")]
    WebhookChange(WebhookChange),
    /// See [`Lifecycle`].
    #[prost(message, tag = "52")]
    Lifecycle(Lifecycle),
    /// See [`Activity`].
    #[prost(message, tag = "53")]
    Activity(Activity),
}
