//! Event types and their many names.

use serde::Serialize;

/// What happened. The first ten are S2's (and Amazon SES's), `Subscription` is SES's alone, and the last four are
/// changes of an account's standing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration, Serialize)]
#[repr(i32)]
pub enum EventType {
    /// Not an event: what an unset field reads as.
    Unspecified = 0,
    /// A message was accepted for sending.
    Send = 1,
    /// The recipient's server accepted it.
    Delivery = 2,
    /// It was refused, for good or for now.
    Bounce = 3,
    /// The recipient called it spam.
    Complaint = 4,
    /// The recipient's program loaded the pixel.
    Open = 5,
    /// The recipient followed a link.
    Click = 6,
    /// We refused to send it.
    Reject = 7,
    /// A template could not be rendered.
    RenderingFailure = 8,
    /// A soft failure; it will be tried again.
    DeliveryDelay = 9,
    /// The recipient answered.
    Reply = 10,
    /// The recipient changed a subscription.
    Subscription = 11,
    /// The account crossed a warning limit.
    AtRisk = 20,
    /// The account was paused.
    Paused = 21,
    /// The account was resumed.
    Resumed = 22,
    /// The account fell below its warning limit again.
    Healthy = 23,
    /// A webhook fails all the time; deliveries to it wait.
    WebhookFailing = 24,
    /// It takes what it gets again.
    WebhookRecovered = 25,
    /// It gets nothing any more until its owner enables it.
    WebhookDisabled = 26,
    /// Something that is not about email, for the account-level webhook (S2).
    Lifecycle = 30,
    /// A recipient is to be erased: whatever came before in the partition. No webhook is told.
    RecipientErased = 40,
    /// Somebody changed the account's configuration. No webhook is told, and lists of events leave it out unless asked for it.
    ConfigurationChanged = 41,
}

impl EventType {
    /// Every type, in the order of their codes.
    pub const ALL: [Self; 21] = [
        Self::Send,
        Self::Delivery,
        Self::Bounce,
        Self::Complaint,
        Self::Open,
        Self::Click,
        Self::Reject,
        Self::RenderingFailure,
        Self::DeliveryDelay,
        Self::Reply,
        Self::Subscription,
        Self::AtRisk,
        Self::Paused,
        Self::Resumed,
        Self::Healthy,
        Self::WebhookFailing,
        Self::WebhookRecovered,
        Self::WebhookDisabled,
        Self::Lifecycle,
        Self::RecipientErased,
        Self::ConfigurationChanged,
    ];

    /// The SES name: `Send`, `Delivery`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "Unspecified",
            Self::Send => "Send",
            Self::Delivery => "Delivery",
            Self::Bounce => "Bounce",
            Self::Complaint => "Complaint",
            Self::Open => "Open",
            Self::Click => "Click",
            Self::Reject => "Reject",
            Self::RenderingFailure => "RenderingFailure",
            Self::DeliveryDelay => "DeliveryDelay",
            Self::Reply => "Reply",
            Self::Subscription => "Subscription",
            Self::AtRisk => "AtRisk",
            Self::Paused => "Paused",
            Self::Resumed => "Resumed",
            Self::Healthy => "Healthy",
            Self::WebhookFailing => "WebhookFailing",
            Self::WebhookRecovered => "WebhookRecovered",
            Self::WebhookDisabled => "WebhookDisabled",
            Self::Lifecycle => "Lifecycle",
            Self::RecipientErased => "RecipientErased",
            Self::ConfigurationChanged => "ConfigurationChanged",
        }
    }

    /// The Standard Webhooks name: `email.sent`, …, `account.paused`.
    pub fn dotted(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Send => "email.sent",
            Self::Delivery => "email.delivered",
            Self::Bounce => "email.bounced",
            Self::Complaint => "email.complained",
            Self::Open => "email.opened",
            Self::Click => "email.clicked",
            Self::Reject => "email.rejected",
            Self::RenderingFailure => "email.rendering_failed",
            Self::DeliveryDelay => "email.delivery_delayed",
            Self::Reply => "email.replied",
            Self::Subscription => "email.unsubscribed",
            Self::AtRisk => "account.at_risk",
            Self::Paused => "account.paused",
            Self::Resumed => "account.resumed",
            Self::Healthy => "account.healthy",
            Self::WebhookFailing => "webhook.failing",
            Self::WebhookRecovered => "webhook.recovered",
            Self::WebhookDisabled => "webhook.disabled",
            Self::Lifecycle => "lifecycle",
            Self::RecipientErased => "recipient.erased",
            Self::ConfigurationChanged => "configuration.changed",
        }
    }

    /// Reads any of the names: SES's (`Delivery`), words (`delivered`, `delivery_delay`), dotted
    /// (`email.delivered`, `account.paused`), in any case. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        // The exact SES name is what streams of events carry, so it is looked at first.
        if let Some(exact) = Self::ALL.into_iter().find(|kind| kind.name() == text) {
            return Some(exact);
        }
        let text = text.trim().to_ascii_lowercase();
        let text = text.strip_prefix("email.").or_else(|| text.strip_prefix("account.")).unwrap_or(&text);
        let plain: String = text.chars().filter(|c| !matches!(c, '_' | '-' | ' ' | '.')).collect();
        Some(match plain.as_str() {
            "send" | "sent" => Self::Send,
            "delivery" | "delivered" => Self::Delivery,
            "bounce" | "bounced" => Self::Bounce,
            "complaint" | "complained" => Self::Complaint,
            "open" | "opened" => Self::Open,
            "click" | "clicked" => Self::Click,
            "reject" | "rejected" => Self::Reject,
            "renderingfailure" | "renderingfailed" => Self::RenderingFailure,
            "deliverydelay" | "deliverydelayed" => Self::DeliveryDelay,
            "reply" | "replied" => Self::Reply,
            "subscription" | "unsubscribed" => Self::Subscription,
            "atrisk" => Self::AtRisk,
            "paused" => Self::Paused,
            "resumed" => Self::Resumed,
            "healthy" => Self::Healthy,
            "webhookfailing" => Self::WebhookFailing,
            "webhookrecovered" => Self::WebhookRecovered,
            "webhookdisabled" => Self::WebhookDisabled,
            "lifecycle" => Self::Lifecycle,
            "recipienterased" => Self::RecipientErased,
            "configurationchanged" => Self::ConfigurationChanged,
            _ => return None,
        })
    }

    /// The name of the type's block: `bounce`, `deliveryDelay`, …; `status` for changes of standing.
    pub fn block_name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Delivery => "delivery",
            Self::Bounce => "bounce",
            Self::Complaint => "complaint",
            Self::Open => "open",
            Self::Click => "click",
            Self::Reject => "reject",
            Self::RenderingFailure => "renderingFailure",
            Self::DeliveryDelay => "deliveryDelay",
            Self::Reply => "reply",
            Self::Subscription => "subscription",
            Self::WebhookFailing | Self::WebhookRecovered | Self::WebhookDisabled => "webhook",
            Self::Lifecycle => "lifecycle",
            Self::ConfigurationChanged => "activity",
            _ => "status",
        }
    }

    /// Whether the type speaks of an account's standing rather than of a message.
    pub fn is_status(self) -> bool {
        matches!(self, Self::AtRisk | Self::Paused | Self::Resumed | Self::Healthy)
    }

    /// Whether a partner may stream events of this type in.
    pub fn is_streamable(self) -> bool {
        let other = matches!(self, Self::Unspecified | Self::Lifecycle);
        !other && !self.is_status() && !self.is_webhook_change() && !self.is_for_nobody()
    }

    /// Whether no webhook is told of it.
    pub fn is_for_nobody(self) -> bool {
        matches!(self, Self::RecipientErased | Self::ConfigurationChanged)
    }

    /// Whether this is a change of a webhook's health.
    pub fn is_webhook_change(self) -> bool {
        matches!(self, Self::WebhookFailing | Self::WebhookRecovered | Self::WebhookDisabled)
    }

    /// The format of an event of this type; see [`crate::codec`].
    pub fn version(self) -> u32 {
        match self {
            Self::RecipientErased | Self::ConfigurationChanged => crate::codec::OF_ERASURES,
            _ if self.is_webhook_change() || self == Self::Lifecycle => crate::codec::OF_WEBHOOKS,
            _ => crate::codec::VERSION,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_in_any_case() {
        for kind in EventType::ALL {
            for name in [kind.name(), kind.dotted(), &kind.name().to_lowercase(), &kind.dotted().to_uppercase()] {
                assert_eq!(EventType::parse(name), Some(kind), "{name}");
            }
            assert_eq!(EventType::try_from(kind as i32), Ok(kind));
        }
        assert_eq!(EventType::parse("rendering_failure"), Some(EventType::RenderingFailure));
        assert_eq!(EventType::parse("Delivery_Delay"), Some(EventType::DeliveryDelay));
        assert_eq!(EventType::parse("delivered"), Some(EventType::Delivery));
        assert_eq!(EventType::parse("nonsense"), None);
        assert_eq!(EventType::parse(""), None);
    }
}
