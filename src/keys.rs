//! The keys of a data folder: the administrator's, of which only the hash is kept, the one that seals secrets, and the one
//! that the archive is sealed with.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use hmac::{Hmac, KeyInit, Mac};
use rand::Rng;
use rand::distr::{Alphanumeric, SampleString};
use sendtrail_audit::SealKey;
use sendtrail_eventlog::failpoint::reach;
use sendtrail_schemas::directory::hash_key;
use sendtrail_schemas::secret::{KEY_LENGTH, Vault, hex, unhex};
use sha2::Sha256;

use crate::config::Config;

/// Presets the administrator's key of an empty folder.
pub const ADMIN_KEY_VARIABLE: &str = "SENDTRAIL_ADMIN_KEY";

/// The administrator's key: its hash, and the key itself when it was made just now.
pub struct AdminKey {
    /// SHA-256.
    pub hash: [u8; 32],
    /// To be shown once.
    pub fresh: Option<String>,
}

/// Reads the hash of the administrator's key, or makes a key on the first start; `preset` is taken then, if given.
///
/// # Errors
/// When the folder cannot be read or written, or the file in it is not a hash.
pub fn admin_key(data: &Path, preset: Option<String>) -> anyhow::Result<AdminKey> {
    let path = data.join("admin-key.sha256");
    if let Ok(text) = fs::read_to_string(&path) {
        let hash = unhex(text.trim()).with_context(|| format!("{} holds no hash", path.display()))?;
        return Ok(AdminKey { hash, fresh: None });
    }
    let (key, fresh) = match preset {
        Some(key) if key.len() < 16 => bail!("{ADMIN_KEY_VARIABLE} has at least 16 characters"),
        Some(key) => (key, false),
        None => (format!("admin_{}", Alphanumeric.sample_string(&mut rand::rng(), 56)), true),
    };
    let hash = hash_key(&key);
    write_private(&path, hex(&hash).as_bytes())?;
    Ok(AdminKey { hash, fresh: fresh.then_some(key) })
}

/// The vault for webhook secrets: with the key of the settings, or one that is made in the folder.
///
/// # Errors
/// When the folder cannot be read or written, or the file in it is not a key.
pub fn vault(data: &Path, config: &Config) -> anyhow::Result<Vault> {
    let vault = vault_of(data, config)?;
    let mut previous = config.previous_secret_keys();
    // Who begins to give a key has secrets that were sealed with the folder's.
    if config.secret_key().is_some()
        && let Some(key) = fs::read_to_string(data.join("secret.key")).ok().and_then(|text| unhex(text.trim()))
    {
        previous.push(key);
    }
    Ok(vault.with_previous(&previous))
}

fn vault_of(data: &Path, config: &Config) -> anyhow::Result<Vault> {
    if let Some(key) = config.secret_key() {
        return Ok(Vault::new(&key));
    }
    Ok(Vault::new(&kept(&data.join("secret.key"))?))
}

/// The key that days and exports are sealed with: the settings', or one that is made in the folder.
///
/// # Errors
/// When the folder cannot be read or written, or the file in it is not a key.
pub fn seal_key(data: &Path, config: &Config) -> anyhow::Result<SealKey> {
    match config.seal_key() {
        Some(seed) => Ok(SealKey::new(&seed)),
        None => Ok(SealKey::new(&kept(&data.join("seal.key"))?)),
    }
}

/// The key that links to files of exports are signed with: it follows from the one that secrets are sealed with, so that
/// servers that share it take each other's.
///
/// # Errors
/// As [`vault`].
pub fn link_key(data: &Path, config: &Config) -> anyhow::Result<[u8; 32]> {
    let key = match config.secret_key() {
        Some(key) => key,
        None => kept(&data.join("secret.key"))?,
    };
    let mut mac = Hmac::<Sha256>::new_from_slice(&key)?;
    mac.update(b"links to exports");
    Ok(mac.finalize().into_bytes().into())
}

/// The key in a file, which is made if it is not there.
fn kept(path: &Path) -> anyhow::Result<[u8; KEY_LENGTH]> {
    if let Ok(text) = fs::read_to_string(path) {
        return unhex(text.trim()).with_context(|| format!("{} holds no key", path.display()));
    }
    let mut key = [0u8; KEY_LENGTH];
    rand::rng().fill_bytes(&mut key);
    match write_private(path, hex(&key).as_bytes()) {
        // Somebody else made one meanwhile.
        Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(is_there) => {
            let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            unhex(text.trim()).with_context(|| format!("{} holds no key", path.display()))
        }
        written => written.map(|()| key),
    }
}

/// Writes a file that only its owner reads, durable when this returns.
fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    // It is whole before it has its name: a crash must not leave an empty one, with which no server starts.
    let aside = path.with_extension(format!("{:016x}", rand::rng().next_u64()));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        reach("key.made");
        file.write_all(bytes)?;
        file.sync_all()?;
        match fs::hard_link(&aside, path) {
            // Not every file system has links.
            Err(error) if !is_there(&error) && !path.exists() => fs::rename(&aside, path)?,
            linked => linked?,
        }
        fs::File::open(path.parent().unwrap_or(path))?.sync_all()
    };
    let written = write();
    drop(fs::remove_file(&aside));
    written.with_context(|| format!("write {}", path.display()))
}

fn is_there(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AlreadyExists
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn whoever_asks_at_once_gets_the_same_key_whole_whatever_a_crash_left_beside_it() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("secret.key");
        fs::write(folder.path().join("secret.0123456789abcdef"), "0123").unwrap();
        let keys: Vec<[u8; KEY_LENGTH]> = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| kept(&path).unwrap())).collect();
            asked.into_iter().map(|asked| asked.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        assert_eq!(fs::read_to_string(&path).unwrap(), hex(&keys[0]));
        assert_eq!(names(folder.path()), ["secret.0123456789abcdef", "secret.key"]);
    }

    #[test]
    fn a_file_that_is_there_stays_and_one_that_cannot_be_written_leaves_nothing() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("seal.key");
        write_private(&path, b"first").unwrap();
        let told = write_private(&path, b"second").unwrap_err();
        assert!(told.downcast_ref::<std::io::Error>().is_some_and(is_there), "{told:#}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        // A folder has its name.
        fs::create_dir(folder.path().join("secret.key")).unwrap();
        write_private(&folder.path().join("secret.key"), b"third").unwrap_err();
        assert_eq!(names(folder.path()), ["seal.key", "secret.key"]);
    }

    #[test]
    fn a_key_is_made_once_and_only_its_hash_is_kept() {
        let folder = tempfile::TempDir::new().unwrap();
        let first = admin_key(folder.path(), None).unwrap();
        let key = first.fresh.unwrap();
        assert_eq!(first.hash, hash_key(&key));
        let again = admin_key(folder.path(), Some("another key, too late".into())).unwrap();
        assert_eq!((again.hash, again.fresh), (first.hash, None));
        let path = folder.path().join("admin-key.sha256");
        assert!(!fs::read_to_string(&path).unwrap().contains(&key));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_preset_key_is_not_shown() {
        let folder = tempfile::TempDir::new().unwrap();
        let key = admin_key(folder.path(), Some("preset-key-of-an-empty-folder".into())).unwrap();
        assert_eq!((key.hash, key.fresh), (hash_key("preset-key-of-an-empty-folder"), None));
        assert!(admin_key(tempfile::TempDir::new().unwrap().path(), Some("short".into())).is_err());
    }

    #[test]
    fn the_vault_opens_after_a_restart() {
        let folder = tempfile::TempDir::new().unwrap();
        let config = Config::defaults();
        let sealed = vault(folder.path(), &config).unwrap().seal(b"s", [1; 24], b"x");
        assert_eq!(vault(folder.path(), &config).unwrap().open(&sealed, b"x").unwrap(), b"s");
    }

    #[test]
    fn secrets_open_after_the_key_was_changed() {
        use base64::Engine;
        let folder = tempfile::TempDir::new().unwrap();
        let mut config = Config::defaults();
        let first = vault(folder.path(), &config).unwrap().seal(b"s", [1; 24], b"x");
        let encoded = |byte| base64::prelude::BASE64_STANDARD.encode([byte; 32]);
        config.secrets.key = encoded(1);
        let second = vault(folder.path(), &config).unwrap();
        assert_eq!((second.open(&first, b"x").unwrap(), second.is_outdated(&first)), (b"s".to_vec(), true));
        let sealed = second.seal(b"t", [1; 24], b"x");
        config.secrets.key = encoded(2);
        assert!(vault(folder.path(), &config).unwrap().open(&sealed, b"x").is_err());
        config.secrets.previous_keys = vec![encoded(1)];
        assert_eq!(vault(folder.path(), &config).unwrap().open(&sealed, b"x").unwrap(), b"t");
    }
}
