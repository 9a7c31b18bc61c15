//! A key in a PKCS#11 token (an HSM, a smart card, SoftHSM): found by token and name, asked to sign, never read.
//!
//! A token comes and goes: its sessions end when it is pulled, restarted or cut off. So whatever fails is tried once more
//! with a new session, which finds the slot, logs in and finds the key anew; signing twice is as good as once. The one
//! thing that is never tried twice is a PIN that was refused, because tokens lock themselves after a few.

use std::{
    collections::HashMap,
    fmt, mem,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::digest;
/// A PIN: wiped when it is dropped, and never printed.
pub use cryptoki::types::AuthPin;
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    mechanism::Mechanism,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    slot::Slot,
};

use super::{SignError, Signer};
use crate::bridge::keys::{KeyError, PublicKey};

/// What precedes a SHA-256 digest in a PKCS#1 block (RFC 8017, 9.2, note 1), for tokens that do not hash themselves.
const SHA_256_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];

/// Signed once at the start, so that halves of two pairs under one name are found then.
const TRIAL: &[u8] = b"alipayplus-cancel start";

/// Where a key is.
pub struct Location {
    /// The vendor's library.
    pub module: PathBuf,
    /// The token's label.
    pub token_label: String,
    /// The key in it.
    pub key: KeyName,
    /// The user's PIN.
    pub pin: AuthPin,
    /// Most sessions at once.
    pub sessions: usize,
}

/// By what a key is found in its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyName {
    /// `CKA_LABEL`
    Label(String),
    /// `CKA_ID`
    Id(Vec<u8>),
}

/// The setting that a problem is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// The library.
    Module,
    /// The token.
    Token,
    /// The PIN.
    Pin,
    /// The key.
    Key,
}

/// Why a key cannot be used. Never holds a PIN.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not a library of PKCS#11.
    #[error("{path} cannot be loaded as a PKCS#11 module")]
    Module {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Error,
    },
    /// No token of this label, or several.
    #[error("{found} tokens have the label `{label}`, and one is due; there are: {there}")]
    Token {
        /// The label.
        label: String,
        /// How many have it.
        found: usize,
        /// The labels that there are.
        there: String,
    },
    /// The PIN is wrong, locked or expired.
    #[error("the token `{label}` refuses the PIN")]
    Pin {
        /// The token.
        label: String,
        /// Its code.
        #[source]
        source: Error,
    },
    /// No private RSA key of this name, or several.
    #[error("{found} private RSA keys in the token have this name, and one is due")]
    Key {
        /// How many have it.
        found: usize,
    },
    /// The key's public numbers cannot be read, on the key or on a public key of its name.
    #[error(
        "the token does not tell the key's modulus and exponent; store its public key beside it"
    )]
    NoPublic,
    /// The key may not be used.
    #[error("the key {0}")]
    Unfit(KeyError),
    /// The trial signature failed.
    #[error("the key does not sign: {0}")]
    NoSignature(SignError),
    /// The trial signature does not verify.
    #[error(
        "the key's signature does not verify with the public key of the same name: they are no pair"
    )]
    NoPair,
    /// Anything else.
    #[error("the token failed: {0}")]
    Failed(Error),
}

impl OpenError {
    /// The setting to look at.
    pub fn about(&self) -> About {
        match self {
            Self::Module { .. } => About::Module,
            Self::Token { .. } | Self::Failed(_) => About::Token,
            Self::Pin { .. } => About::Pin,
            Self::Key { .. }
            | Self::NoPublic
            | Self::Unfit(_)
            | Self::NoSignature(_)
            | Self::NoPair => About::Key,
        }
    }
}

/// A key in a token.
pub struct TokenKey {
    location: Location,
    module: Pkcs11,
    public: PublicKey,
    /// Whether the token hashes, or we do.
    hashes: bool,
    idle: Mutex<Vec<Live>>,
    /// Held by the one that reopens; whether the PIN was refused.
    pin_refused: Mutex<bool>,
}

/// A session that is logged in, and the key in it.
struct Live {
    session: Session,
    key: ObjectHandle,
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenKey(in {:?}, of {:?})", self.location.token_label, self.public)
    }
}

impl TokenKey {
    /// Finds the key and tries it. Blocks for as long as the token takes.
    pub fn open(location: Location) -> Result<Self, OpenError> {
        let module = load(&location.module)
            .map_err(|source| OpenError::Module { path: location.module.clone(), source })?;
        let slot = slot_of(&module, &location.token_label)?;
        let live = session(&module, slot, &location)?;
        let public = public_key(&live, &location.key)?;
        // tried, because what tokens list and what they do differ
        let trial = live.session.sign(&Mechanism::Sha256RsaPkcs, live.key, TRIAL);
        let hashes = !matches!(trial, Err(Error::Pkcs11(RvError::MechanismInvalid, _)));
        let opened = Self {
            location,
            module,
            public,
            hashes,
            idle: Mutex::new(vec![live]),
            pin_refused: Mutex::new(false),
        };
        let signature = opened.sign(TRIAL).map_err(OpenError::NoSignature)?;
        if !opened.public.verify(TRIAL, &signature) {
            return Err(OpenError::NoPair);
        }
        Ok(opened)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Live>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sign_with(&self, live: &Live, message: &[u8]) -> Result<Vec<u8>, Error> {
        if self.hashes {
            return live.session.sign(&Mechanism::Sha256RsaPkcs, live.key, message);
        }
        let digest = digest::digest(&digest::SHA256, message);
        let info = [SHA_256_INFO.as_slice(), digest.as_ref()].concat();
        live.session.sign(&Mechanism::RsaPkcs, live.key, &info)
    }

    /// A new session, everything found anew: a token that came back may be in another slot. One at a time, so that a PIN
    /// that is refused is tried once and not by every thread that signs.
    fn reopen(&self) -> Result<Live, SignError> {
        let mut pin_refused = self.pin_refused.lock().unwrap_or_else(PoisonError::into_inner);
        if *pin_refused {
            return Err(SignError::PinRefused);
        }
        if matches!(
            self.module.get_library_info(),
            Err(Error::Pkcs11(RvError::CryptokiNotInitialized, _))
        ) {
            initialize(&self.module).map_err(|error| token_failed(&error))?;
        }
        let opened = slot_of(&self.module, &self.location.token_label)
            .and_then(|slot| session(&self.module, slot, &self.location));
        opened.map_err(|error| {
            if matches!(error, OpenError::Pin { .. }) {
                *pin_refused = true;
                return SignError::PinRefused;
            }
            SignError::Token(error.to_string())
        })
    }
}

fn token_failed(error: &Error) -> SignError {
    SignError::Token(error.to_string())
}

impl Signer for TokenKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let idle = self.idle().pop();
        if let Some(live) = idle {
            match self.sign_with(&live, message) {
                Ok(signature) => {
                    self.idle().push(live);
                    return Ok(signature);
                }
                Err(error) => {
                    tracing::warn!(%error, "a session with the token is lost; it is opened anew");
                    // the others are of the same token, and a login ends with its last session
                    let lost = mem::take(&mut *self.idle());
                    drop((live, lost));
                }
            }
        }
        let live = self.reopen()?;
        let signature = self.sign_with(&live, message).map_err(|error| token_failed(&error))?;
        // what came back may be another token, or another key under the same name
        if !self.public.verify(message, &signature) {
            return Err(SignError::AnotherKey);
        }
        self.idle().push(live);
        Ok(signature)
    }

    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn at_once(&self) -> usize {
        self.location.sessions
    }
}

/// Every module of this process. One is loaded and initialised once, whoever asks, and stays: it may have threads, and
/// other keys of the same module would lose their sessions with it.
fn load(path: &Path) -> Result<Pkcs11, Error> {
    static MODULES: LazyLock<Mutex<HashMap<PathBuf, Pkcs11>>> = LazyLock::new(Mutex::default);
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = modules.get(path) {
        return Ok(module.clone());
    }
    let module = Pkcs11::new(path)?;
    initialize(&module)?;
    modules.insert(path.to_owned(), module.clone());
    Ok(module)
}

fn initialize(module: &Pkcs11) -> Result<(), Error> {
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        // by another name of the same file, or by another thread that reopens
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn slot_of(module: &Pkcs11, label: &str) -> Result<Slot, OpenError> {
    let slots = module.get_slots_with_token().map_err(OpenError::Failed)?;
    // a slot that does not answer must not hide the others
    let tokens =
        slots.into_iter().filter_map(|slot| Some((slot, module.get_token_info(slot).ok()?)));
    let tokens: Vec<_> = tokens.filter(|(_, token)| token.token_initialized()).collect();
    let named: Vec<Slot> =
        tokens.iter().filter(|(_, token)| token.label() == label).map(|(slot, _)| *slot).collect();
    if let [slot] = named.as_slice() {
        return Ok(*slot);
    }
    let there: Vec<String> =
        tokens.iter().map(|(_, token)| format!("`{}`", token.label())).collect();
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    Err(OpenError::Token { label: label.to_owned(), found: named.len(), there })
}

fn session(module: &Pkcs11, slot: Slot, location: &Location) -> Result<Live, OpenError> {
    let session = module.open_ro_session(slot).map_err(OpenError::Failed)?;
    match session.login(UserType::User, Some(&location.pin)) {
        // the login is the token's, so the second session has it already
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
        Err(source) if is_about_the_pin(&source) => {
            return Err(OpenError::Pin { label: location.token_label.clone(), source });
        }
        Err(error) => return Err(OpenError::Failed(error)),
    }
    let key = find(&session, ObjectClass::PRIVATE_KEY, &location.key)?;
    let key = only(&key)?;
    Ok(Live { session, key })
}

fn is_about_the_pin(error: &Error) -> bool {
    matches!(
        error,
        Error::Pkcs11(
            RvError::PinIncorrect
                | RvError::PinInvalid
                | RvError::PinLenRange
                | RvError::PinLocked
                | RvError::PinExpired
                | RvError::UserPinNotInitialized,
            _
        )
    )
}

fn only(found: &[ObjectHandle]) -> Result<ObjectHandle, OpenError> {
    match found {
        [key] => Ok(*key),
        keys => Err(OpenError::Key { found: keys.len() }),
    }
}

fn find(
    session: &Session,
    class: ObjectClass,
    name: &KeyName,
) -> Result<Vec<ObjectHandle>, OpenError> {
    let name = match name {
        KeyName::Label(label) => Attribute::Label(label.as_bytes().to_vec()),
        KeyName::Id(id) => Attribute::Id(id.clone()),
    };
    let template = [Attribute::Class(class), Attribute::KeyType(KeyType::RSA), name];
    session.find_objects(&template).map_err(OpenError::Failed)
}

/// The public numbers: from the private key, which most tokens let tell, else from the public key of its name.
fn public_key(live: &Live, name: &KeyName) -> Result<PublicKey, OpenError> {
    let numbers = if let Some(own) = numbers(live, live.key) {
        own
    } else {
        let beside = find(&live.session, ObjectClass::PUBLIC_KEY, name)?;
        beside.iter().find_map(|key| numbers(live, *key)).ok_or(OpenError::NoPublic)?
    };
    PublicKey::from_numbers(&numbers.0, &numbers.1).map_err(OpenError::Unfit)
}

fn numbers(live: &Live, key: ObjectHandle) -> Option<(Vec<u8>, Vec<u8>)> {
    let wanted = [AttributeType::Modulus, AttributeType::PublicExponent];
    let (mut modulus, mut exponent) = (None, None);
    for attribute in live.session.get_attributes(key, &wanted).ok()? {
        if let Attribute::Modulus(bytes) = attribute {
            modulus = Some(bytes);
        } else if let Attribute::PublicExponent(bytes) = attribute {
            exponent = Some(bytes);
        }
    }
    // an empty one is not known to the token either
    Some((modulus.filter(|n| !n.is_empty())?, exponent.filter(|e| !e.is_empty())?))
}
