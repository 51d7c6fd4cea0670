//! Settings of librdkafka as an operator writes them: `name=value`.

/// Whether each is one.
pub fn are_sound(given: &[String]) -> bool {
    given.iter().all(|property| property.contains('='))
}

/// Their names and values.
pub fn parse(given: &[String]) -> impl Iterator<Item = (String, String)> {
    let pairs = given.iter().filter_map(|property| property.split_once('='));
    pairs.map(|(name, value)| (name.trim().to_owned(), value.to_owned()))
}

/// Hides the values of those that are secret by their names.
pub fn hide(given: &mut [String]) {
    let words = ["password", "passphrase", "secret", "token", "pem", "oauthbearer.config"];
    let secret = |name: &str| words.iter().any(|word| name.contains(word));
    for property in given {
        if let Some((name, _)) = property.split_once('=').filter(|(name, _)| secret(name)) {
            *property = format!("{name}=(set)");
        }
    }
}
