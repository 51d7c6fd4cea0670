//! Programs in Python that look at ours from outside, each kind in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// What is looked at the archive with.
const READERS: Python = Python {
    folder: "python",
    modules: "deltalake, pyarrow, duckdb, pandas, cryptography, standardwebhooks",
    packages: &["deltalake>=1.6", "pyarrow", "duckdb", "pandas", "cryptography", "standardwebhooks"],
};

const SCHEMATHESIS: Python =
    Python { folder: "schemathesis", modules: "schemathesis", packages: &["schemathesis>=4.32,<5"] };

/// A Python with what tests need, a package among that.
pub fn python_with(package: &str) -> Option<PathBuf> {
    READERS.interpreter(package)
}

/// The program that calls an API as its document says, and otherwise.
pub fn schemathesis() -> Option<Command> {
    // Not the script beside it, which knows where the folder was when it was made.
    let mut command = Command::new(SCHEMATHESIS.interpreter("schemathesis")?);
    command.args(["-m", "schemathesis.cli"]);
    Some(command)
}

struct Python {
    folder: &'static str,
    modules: &'static str,
    packages: &'static [&'static str],
}

impl Python {
    /// None where it cannot be had, which is an error in CI.
    fn interpreter(&self, package: &str) -> Option<PathBuf> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock();
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(self.folder);
        let python = home.join("bin/python");
        let run = |command: &mut Command| command.status().is_ok_and(|status| status.success());
        if run(Command::new(&python).args(["-c", &format!("import {}", self.modules)])) {
            return Some(python);
        }
        let made = run(Command::new("python3").args(["-m", "venv"]).arg(&home))
            && run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(self.packages));
        if made {
            return Some(python);
        }
        assert!(std::env::var_os("CI").is_none(), "Python packages could not be installed");
        println!("SKIPPED: Python with the package {package} is not to be had here");
        None
    }
}
