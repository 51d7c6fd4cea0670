//! Settings from the environment, and what may be said of those that are wrong.

use std::ffi::OsString;

use figment::Figment;
use figment::error::Kind;
use figment::providers::{Format, Serialized, Toml};
use figment::value::Value;

use super::{DEFAULTS, ENVIRONMENT};

/// Settings that are text, as they stand in the environment: what looks like a number there, or like a list, may be a password.
pub fn as_text(mut given: Figment, environment: impl Iterator<Item = (OsString, OsString)>) -> Figment {
    let defaults = Figment::from(Toml::string(DEFAULTS));
    for (name, value) in environment {
        // What is no text is no setting of ours; figment passes over it, too.
        let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) else { continue };
        let rest = name.get(..ENVIRONMENT.len()).filter(|start| start.eq_ignore_ascii_case(ENVIRONMENT));
        let Some(rest) = rest.and_then(|start| name.get(start.len()..)) else { continue };
        let path = rest.to_ascii_lowercase().replace("__", ".");
        let is_text = |figment: &Figment| matches!(figment.find_value(&path), Ok(Value::String(..)));
        if is_text(&defaults) && !is_text(&given) {
            given = given.merge(Serialized::global(&path, value));
        }
    }
    given
}

/// What is wrong with a setting; not what a secret is.
pub fn told(path: &str, kind: Kind) -> String {
    let name = path.rsplit('.').next().unwrap_or_default();
    let is_secret = ["key", "keys", "password"].iter().any(|word| name.ends_with(word)) || path.contains("properties");
    match kind {
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) if is_secret => {
            format!("it is not {expected}")
        }
        kind => kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::config::Config;

    #[test]
    fn passwords_are_what_the_environment_says_whatever_they_look_like() {
        let set = |password: &str| {
            let environment = [
                ("SENDTRAIL__KAFKA__SASL_PASSWORD", password),
                ("sendtrail__clickhouse__password", password),
                ("SENDTRAIL__SERVER__MAX_CONNECTIONS", "7"),
                ("PATH", "12"),
            ];
            let given = Figment::from(Serialized::global("server.max_connections", 7));
            let unreadable = (OsString::from("LS"), OsString::from_vec(vec![0xff]));
            let environment = environment.map(|(name, value)| (name.into(), value.into()));
            Config::read(as_text(given, environment.into_iter().chain([unreadable])))
        };
        for password in ["12345678", "true", "{a=1}", "[secret]", "1e3", "plain"] {
            let config = set(password).unwrap();
            assert_eq!((&*config.kafka.sasl_password, &*config.clickhouse.password), (password, password));
            assert_eq!(config.server.max_connections, 7);
        }
    }

    #[test]
    fn what_a_secret_is_is_not_said() {
        for (path, is_said) in [
            ("kafka.sasl_password", false),
            ("s3.secret_access_key", false),
            ("secrets.previous_keys", false),
            ("kafka.properties", false),
            ("server.listen", true),
        ] {
            let given = Figment::from(Serialized::global(path, 12_345_678));
            let told = Config::read(given).unwrap_err().0.join("\n");
            assert!(told.starts_with(path) && told.contains("12345678") == is_said, "{told}");
        }
    }
}
