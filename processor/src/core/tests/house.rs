//! The rule of this house: the core decides and touches nothing.

use std::fs;
use std::path::Path;

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "tests") {
                sources(&path, found);
            }
        } else {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn no_clock_no_randomness_no_io_no_async_no_opened_secret() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/core"), &mut found);
    assert!(found.len() > 8);
    let forbidden = [
        "async ",
        ".await",
        "tokio",
        "std::fs",
        "std::net",
        "std::thread",
        "std::time",
        "Millis::wall",
        "::now(",
        "rand::",
        "tracing::",
        "parking_lot",
        "Mutex",
        "println!",
        // Secrets are sealed at the door, and opened where they sign.
        "Vault",
        "chacha",
    ];
    for (path, text) in found {
        let code = text.split("#[cfg(test)]").next().unwrap();
        for word in forbidden {
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            assert!(lines.into_iter().all(|line| !line.contains(word)), "{path} mentions {word:?}");
        }
    }
}
