//! What fuzzing found, and what it began with, is checked in every run. `cargo +nightly fuzz run NAME` looks for more.

use std::path::PathBuf;

#[path = "../../fuzz/checks.rs"]
mod checks;

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn of_every_input_in_the_corpus_holds_what_must_hold() {
    for (target, check) in checks::ALL {
        let inputs = corpus(target);
        assert!(inputs.len() >= 5, "{target}: {} inputs", inputs.len());
        for (path, input) in inputs {
            println!("{}", path.display());
            check(&input);
            // Cut short, and damaged in one place, as lines and records get.
            for at in (0..input.len()).step_by(input.len().div_ceil(100).max(1)) {
                check(&input[..at]);
                let mut damaged = input.clone();
                damaged[at] ^= 1 << (at % 8);
                check(&damaged);
            }
        }
    }
}
