//! How a repository is locked and unlocked: `config.json` and `keys/`.
//!
//! | given | made at the first backup | who can read |
//! |---|---|---|
//! | nothing | `config.json` with the secret | everybody |
//! | `AGE_PASSPHRASE` | `keys/identity.age`: an age identity and the secret, wrapped with the passphrase | the passphrase |
//! | `AGE_PUBLIC_KEYS` | `keys/secret-<id>.age`: the secret, to these keys; a copy in the state directory | their `AGE_IDENTITY` |
//!
//! Both can be given: then either opens what is written from now on. `config.json` is written last, and is
//! what makes a repository.

mod config;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::PathBuf;

use age::secrecy::{ExposeSecret, SecretString};
use age::{scrypt, x25519};

use super::crypto::{Mode, Sealed, Secrets};
use super::store::Store;
use super::{CONFIG_KEY, PackName, RepositoryError};
use crate::config::Secret;

pub(super) use config::RepositoryConfig;

const IDENTITY_KEY: &str = "keys/identity.age";
const KEY_FILE_LIMIT_BYTES: u64 = 64 * 1024;
/// 64 MiB and a fifth of a second for each guess; more would not fit beside small services.
const WORK_FACTOR: u8 = 16;
/// A hostile store shall not make us use gigabytes.
const WORK_FACTOR_LIMIT: u8 = 20;

/// What the user gave to open repositories with.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    pub passphrase: Option<Secret>,
    /// age recipients, `age1...`.
    pub public_keys: Vec<String>,
    /// What `age-keygen` wrote: lines of which some are `AGE-SECRET-KEY-1...`.
    pub identity: Option<Secret>,
    /// Where the secret of a repository is kept that this host cannot read.
    pub state: Option<PathBuf>,
    /// The id that the repository must have.
    pub expected_id: Option<String>,
}

impl Keys {
    /// Nothing given: an unencrypted repository.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether a repository that is made with them is encrypted.
    pub fn encrypts(&self) -> bool {
        self.passphrase.is_some() || !self.public_keys.is_empty()
    }

    fn recipients(&self) -> Result<Vec<x25519::Recipient>, RepositoryError> {
        self.public_keys
            .iter()
            .map(|key| {
                key.parse().map_err(|why| {
                    RepositoryError::Invalid(format!(
                        "AGE_PUBLIC_KEYS: \"{}\" is not an age public key ({why}); one begins with age1",
                        key.escape_debug()
                    ))
                })
            })
            .collect()
    }

    fn identities(&self) -> Result<Vec<x25519::Identity>, RepositoryError> {
        let Some(text) = &self.identity else {
            return Ok(Vec::new());
        };
        let lines = text.reveal().lines().map(str::trim);
        let found = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                line.parse().map_err(|_| {
                    RepositoryError::Invalid(
                        "AGE_IDENTITY: a line is not an age identity; one begins with AGE-SECRET-KEY-1"
                            .to_owned(),
                    )
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        if found.is_empty() {
            return Err(RepositoryError::Invalid(
                "AGE_IDENTITY holds no line that begins with AGE-SECRET-KEY-1".to_owned(),
            ));
        }
        Ok(found)
    }

    fn state_file(&self, id: &str) -> Option<PathBuf> {
        self.state
            .as_ref()
            .map(|dir| dir.join(format!("secret-{id}")))
    }
}

/// Which repository is in a store now.
pub(super) fn id_in(store: &dyn Store) -> Result<String, RepositoryError> {
    Ok(RepositoryConfig::read(store)?.id)
}

/// What opening a repository gives.
pub(super) type Unlocked = (RepositoryConfig, Secrets, Mode);

/// Makes the files of a new repository; the last of them is `config.json`. Who has just made it need not unlock
/// it again; `None` where another host was faster.
pub(super) fn init(store: &dyn Store, keys: &Keys) -> Result<Option<Unlocked>, RepositoryError> {
    let (secrets, mode) = if let Some(passphrase) = &keys.passphrase {
        let (identity, secrets) = match new_identity(store, passphrase) {
            // Another host was faster, or a first try was cut short: its keys are as good.
            Err(RepositoryError::Exists(_)) => unwrap_identity(store, passphrase)?,
            other => other?,
        };
        let mut recipients = vec![identity.to_public()];
        recipients.extend(keys.recipients()?);
        let mut identities = vec![identity];
        identities.extend(keys.identities()?);
        (
            secrets,
            Mode::Age {
                recipients,
                identities,
            },
        )
    } else if keys.encrypts() {
        let recipients = keys.recipients()?;
        let identities = keys.identities()?;
        (
            Secrets::generate(),
            Mode::Age {
                recipients,
                identities,
            },
        )
    } else {
        (Secrets::generate(), Mode::Plain)
    };
    if !keys.public_keys.is_empty() {
        keep_secret(&secrets, keys)?;
        store.replace(
            &secret_key(&secrets.id()),
            &mode.encrypt(secret_text(&secrets).as_bytes())?,
        )?;
    }
    let config = RepositoryConfig::new(&secrets, &mode, 0);
    match store.put(CONFIG_KEY, &config.write()?) {
        Ok(()) => Ok(Some((config, secrets, mode))),
        // Two hosts may begin at once: the first one's config holds.
        Err(RepositoryError::Exists(_)) => Ok(None),
        Err(other) => Err(other),
    }
}

/// Opens what `config.json` says with what was given.
pub(super) fn unlock(store: &dyn Store, keys: &Keys) -> Result<Unlocked, RepositoryError> {
    let config = RepositoryConfig::read(store)?;
    if let Some(expected) = &keys.expected_id
        && *expected != config.id
    {
        return Err(RepositoryError::Invalid(format!(
            "{} holds the repository {}, and LIFEBOAT_REPOSITORY_ID asks for {expected}: it is another one, or was exchanged",
            store.describe(),
            config.id
        )));
    }
    let (secrets, mode) = match config.encryption.as_str() {
        "plain" => unlock_plain(store, keys, &config)?,
        "age" => unlock_age(store, keys, &config)?,
        other => {
            return Err(RepositoryError::Invalid(format!(
                "config.json of {} says \"encryption\": \"{}\", which this program does not know: use a newer one",
                store.describe(),
                other.escape_debug()
            )));
        }
    };
    if secrets.id() != config.id
        || !secrets.is_sealed(
            Sealed::Config,
            config.sealed_part().as_bytes(),
            &config.seal,
        )
    {
        return Err(RepositoryError::Forged(CONFIG_KEY.to_owned()));
    }
    Ok((config, secrets, mode))
}

fn unlock_plain(
    store: &dyn Store,
    keys: &Keys,
    config: &RepositoryConfig,
) -> Result<(Secrets, Mode), RepositoryError> {
    if keys.encrypts() || keys.identity.is_some() {
        // Going on would store in the clear what the user wants encrypted, or believe an exchanged store.
        return Err(RepositoryError::Invalid(format!(
            "the repository in {} is not encrypted, but a key is given (AGE_PASSPHRASE, AGE_PUBLIC_KEYS or AGE_IDENTITY): \
             take the key away, or begin an encrypted repository in another place and `copy` the backups to it",
            store.describe()
        )));
    }
    let text = config.secret.as_deref().unwrap_or_default();
    Ok((parse_secret(text)?, Mode::Plain))
}

fn unlock_age(
    store: &dyn Store,
    keys: &Keys,
    config: &RepositoryConfig,
) -> Result<(Secrets, Mode), RepositoryError> {
    let (identities, secrets) = if let Some(passphrase) = &keys.passphrase {
        let (identity, secrets) = unwrap_identity(store, passphrase)?;
        let mut identities = vec![identity];
        identities.extend(keys.identities()?);
        (identities, secrets)
    } else if keys.identity.is_some() {
        let identities = keys.identities()?;
        let secrets = read_secret(store, &config.id, &identities)?;
        (identities, secrets)
    } else if !keys.public_keys.is_empty() {
        (Vec::new(), kept_secret(keys, &config.id)?)
    } else {
        return Err(RepositoryError::Invalid(format!(
            "the repository in {} is encrypted: set AGE_PASSPHRASE, or AGE_IDENTITY_FILE for one made with AGE_PUBLIC_KEYS",
            store.describe()
        )));
    };
    let mut recipients: Vec<x25519::Recipient> = Vec::new();
    if keys.passphrase.is_some() {
        recipients.extend(identities.first().map(x25519::Identity::to_public));
    }
    recipients.extend(keys.recipients()?);
    if recipients.is_empty() {
        // Sealed, so nobody else put them there; the seal is checked before anything is written.
        for text in &config.recipients {
            recipients.push(
                text.parse()
                    .map_err(|_| RepositoryError::Forged(CONFIG_KEY.to_owned()))?,
            );
        }
    }
    Ok((
        secrets,
        Mode::Age {
            recipients,
            identities,
        },
    ))
}

/// Brings the stored recipients in line with those given: whoever was added reads what is written from now
/// on, and whoever was removed does not.
pub(super) fn update_recipients(
    store: &dyn Store,
    config: &RepositoryConfig,
    secrets: &Secrets,
    mode: &Mode,
) -> Result<Option<RepositoryConfig>, RepositoryError> {
    let set = |config: &RepositoryConfig| -> BTreeSet<String> {
        config.recipients.iter().cloned().collect()
    };
    let wanted = RepositoryConfig::new(secrets, mode, config.epoch);
    if set(&wanted) == set(config) {
        return Ok(None);
    }
    let somebody_new = !set(&wanted).is_subset(&set(config));
    let wanted = RepositoryConfig::new(secrets, mode, config.epoch + u32::from(somebody_new));
    store.replace(
        &secret_key(&config.id),
        &mode.encrypt(secret_text(secrets).as_bytes())?,
    )?;
    store.replace(CONFIG_KEY, &wanted.write()?)?;
    Ok(Some(wanted))
}

/// Wraps the repository's identity with another passphrase; the packs stay as they are.
pub(super) fn change_passphrase(
    store: &dyn Store,
    old: &Secret,
    new: &Secret,
) -> Result<(), RepositoryError> {
    let (identity, secrets) = unwrap_identity(store, old)?;
    store.replace(IDENTITY_KEY, &wrap(&identity, &secrets, new)?)
}

fn new_identity(
    store: &dyn Store,
    passphrase: &Secret,
) -> Result<(x25519::Identity, Secrets), RepositoryError> {
    let (identity, secrets) = (x25519::Identity::generate(), Secrets::generate());
    store.put(IDENTITY_KEY, &wrap(&identity, &secrets, passphrase)?)?;
    Ok((identity, secrets))
}

fn wrap(
    identity: &x25519::Identity,
    secrets: &Secrets,
    passphrase: &Secret,
) -> Result<Vec<u8>, RepositoryError> {
    let mut recipient = scrypt::Recipient::new(SecretString::from(passphrase.reveal().to_owned()));
    recipient.set_work_factor(WORK_FACTOR);
    let failed = |e: std::io::Error| RepositoryError::io("wrap the repository's key", e);
    let encryptor =
        age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient))
            .map_err(|e| RepositoryError::Invalid(format!("wrap the repository's key: {e}")))?;
    let mut out = encryptor.wrap_output(Vec::new()).map_err(failed)?;
    // A comment to age, so that `age -d keys/identity.age` gives a file that `age -d -i` takes.
    let text = format!(
        "# {}{}\n",
        secret_text(secrets),
        identity.to_string().expose_secret()
    );
    out.write_all(text.as_bytes())
        .and_then(|()| out.finish())
        .map_err(failed)
}

fn unwrap_identity(
    store: &dyn Store,
    passphrase: &Secret,
) -> Result<(x25519::Identity, Secrets), RepositoryError> {
    let bytes = store
        .get(IDENTITY_KEY, KEY_FILE_LIMIT_BYTES)
        .map_err(|e| match e {
            RepositoryError::Missing(_) => RepositoryError::Invalid(format!(
                "the repository in {} has no {IDENTITY_KEY}: it was not made with a passphrase, or the file is lost",
                store.describe()
            )),
            other => other,
        })?;
    let damaged = || RepositoryError::Invalid(format!("{IDENTITY_KEY} is damaged"));
    let mut identity = scrypt::Identity::new(SecretString::from(passphrase.reveal().to_owned()));
    identity.set_max_work_factor(WORK_FACTOR_LIMIT);
    let mut text = String::new();
    age::Decryptor::new_buffered(bytes.as_slice())
        .and_then(|d| d.decrypt(std::iter::once(&identity as &dyn age::Identity)))
        .map_err(|e| match e {
            age::DecryptError::NoMatchingKeys
            | age::DecryptError::DecryptionFailed
            | age::DecryptError::KeyDecryptionFailed => RepositoryError::Invalid(format!(
                "AGE_PASSPHRASE does not open the repository in {}: it was made with another passphrase",
                store.describe()
            )),
            other => RepositoryError::Invalid(format!("{IDENTITY_KEY} is damaged: {other}")),
        })?
        .take(KEY_FILE_LIMIT_BYTES)
        .read_to_string(&mut text)
        .map_err(|_| damaged())?;
    let secrets = text
        .lines()
        .find_map(|line| line.strip_prefix("# secret "))
        .ok_or_else(damaged)?;
    let identity = text
        .lines()
        .find(|line| line.starts_with("AGE-SECRET-KEY-1"))
        .and_then(|line| line.parse().ok())
        .ok_or_else(damaged)?;
    Ok((identity, parse_secret(secrets)?))
}

fn secret_key(id: &str) -> String {
    format!("keys/secret-{id}.age")
}

fn secret_text(secrets: &Secrets) -> String {
    format!("secret {}\n", secrets.to_hex())
}

fn parse_secret(hex: &str) -> Result<Secrets, RepositoryError> {
    // A pack's name and the secret have the same shape.
    hex.parse::<PackName>()
        .map(|secret| Secrets::new(secret.0))
        .map_err(|_| RepositoryError::Forged("the repository's secret".to_owned()))
}

/// The file that holds the secret for those with a key of their own, where there is one and it can be read,
/// holds this repository's.
pub(super) fn check_secret_file(
    store: &dyn Store,
    secrets: &Secrets,
    mode: &Mode,
) -> Result<(), RepositoryError> {
    let key = secret_key(&secrets.id());
    let stored = match store.get(&key, KEY_FILE_LIMIT_BYTES) {
        Err(RepositoryError::Missing(_)) => return Ok(()),
        other => other?,
    };
    let text = mode.decrypt(&key, stored, KEY_FILE_LIMIT_BYTES)?;
    if text == secret_text(secrets).as_bytes() {
        Ok(())
    } else {
        Err(RepositoryError::Forged(key))
    }
}

/// Whether a file below `keys/` opens with what was given and holds this repository's secret. `false` also
/// where nothing was given that opens it.
pub(super) fn is_proven(
    store: &dyn Store,
    key: &str,
    given: &Keys,
    secrets: &Secrets,
    mode: &Mode,
) -> Result<bool, RepositoryError> {
    let opened = if let (IDENTITY_KEY, Some(passphrase)) = (key, &given.passphrase) {
        unwrap_identity(store, passphrase).map(|(_, found)| found.id() == secrets.id())
    } else if key == secret_key(&secrets.id()) && mode.can_read() {
        check_secret_file(store, secrets, mode).map(|()| true)
    } else {
        Ok(false)
    };
    match opened {
        Err(err) if err.is_damage() || matches!(err, RepositoryError::Invalid(_)) => Ok(false),
        other => other,
    }
}

fn read_secret(
    store: &dyn Store,
    id: &str,
    identities: &[x25519::Identity],
) -> Result<Secrets, RepositoryError> {
    let key = secret_key(id);
    let stored = store.get(&key, KEY_FILE_LIMIT_BYTES).map_err(|e| match e {
        RepositoryError::Missing(_) => RepositoryError::Invalid(format!(
            "the repository in {} has no {key}: it was made with a passphrase (AGE_PASSPHRASE), or the file is lost",
            store.describe()
        )),
        other => other,
    })?;
    let mode = Mode::Age {
        recipients: Vec::new(),
        identities: identities.to_vec(),
    };
    let text = mode.decrypt(&key, stored, KEY_FILE_LIMIT_BYTES)?;
    let text = String::from_utf8_lossy(&text);
    parse_secret(text.trim().strip_prefix("secret ").unwrap_or_default())
}

/// A host that cannot read the repository keeps its secret in the state directory.
fn keep_secret(secrets: &Secrets, keys: &Keys) -> Result<(), RepositoryError> {
    let Some(path) = keys.state_file(&secrets.id()) else {
        return Ok(());
    };
    crate::durable::write_replace(&path, secret_text(secrets).as_bytes(), 0o600)
        .map_err(|e| RepositoryError::io("keep the repository's secret in the state directory", e))
}

fn kept_secret(keys: &Keys, id: &str) -> Result<Secrets, RepositoryError> {
    let text = keys
        .state_file(id)
        .and_then(|path| std::fs::read_to_string(path).ok())
        .ok_or_else(|| {
            RepositoryError::Invalid(format!(
                "this host holds only public keys, and its state directory (LIFEBOAT_STATE) no longer has the secret of repository {id}: \
                 run one command with AGE_IDENTITY_FILE set to fetch it again, or begin a repository in another place"
            ))
        })?;
    parse_secret(text.trim().strip_prefix("secret ").unwrap_or_default())
}

/// Where a host that can read also writes with public keys: it keeps the secret for the time when it cannot.
pub(super) fn remember_secret(secrets: &Secrets, keys: &Keys) -> Result<(), RepositoryError> {
    if keys.public_keys.is_empty() || keys.identity.is_none() {
        return Ok(());
    }
    keep_secret(secrets, keys)
}
