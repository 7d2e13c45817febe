//! The token: module, slot, login, and one session's calls.

use std::path::Path;
use std::sync::{Mutex, OnceLock};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11};
use cryptoki::error::{Error as CryptokiError, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use zeroize::{Zeroize, Zeroizing};

use crate::error::{CkrClass, TokenError};
use crate::operation::translate_in_token::LengthCheckCell;
use crate::register::KeyProfile;
use crate::worker::attributes::class;
use crate::worker::raw::{RawModule, TokenWords};
use crate::worker::traits::TokenTraits;

/// A module that is loaded and initialised, once for each process, and never finalised: a finalise
/// under a running call crashes real modules. The process ends instead.
pub(crate) struct Token {
    context: Pkcs11,
    raw: RawModule,
    slot: Slot,
    pin: AuthPin,
    /// Held during a login. Keeps a refusal that only a person can cure, so that no other thread
    /// brings the token nearer to its lock.
    refused: Mutex<Option<RvError>>,
    /// Asked by the first session.
    traits: OnceLock<TokenTraits>,
    /// Manufacturer, model, serial, firmware.
    pub(crate) description: String,
}

impl Token {
    /// Loads the module and finds the token by its label. Logs nobody in yet.
    pub(crate) fn open(module: &Path, label: &str, pin: AuthPin) -> Result<Self, OpenError> {
        let context = initialise(module)?;
        let raw = RawModule::of(module)
            .map_err(|why| OpenError::Load { module: module.display().to_string(), why })?;
        let mut found = None;
        for slot in context.get_slots_with_token().map_err(TokenError::from)? {
            let TokenWords { label: own, description } = raw.token_words(slot)?;
            if own == label {
                found = Some((slot, description));
            }
        }
        let Some((slot, description)) = found else {
            return Err(OpenError::NoToken { label: label.into() });
        };
        let (refused, traits) = (Mutex::default(), OnceLock::new());
        Ok(Self { context, raw, slot, pin, refused, traits, description })
    }

    /// A session of the application's user. Login belongs to token and process: whoever comes
    /// second is logged in already.
    pub(crate) fn session(&self) -> Result<TokenSession, TokenError> {
        let session = self.context.open_rw_session(self.slot)?;
        let mut refused = self.refused.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(rv) = *refused {
            return Err(TokenError::Refused { function: Function::Login, rv });
        }
        match session.login(UserType::User, Some(&self.pin)) {
            Ok(()) | Err(CryptokiError::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(error) => {
                let error = TokenError::from(error);
                if let (TokenError::Refused { rv, .. }, CkrClass::Permanent) =
                    (&error, error.class())
                {
                    *refused = Some(*rv);
                }
                return Err(error);
            }
        }
        drop(refused);
        let traits = match self.traits.get() {
            Some(traits) => traits.clone(),
            None => {
                let asked = TokenTraits::ask(&session)?;
                self.traits.get_or_init(|| asked).clone()
            }
        };
        let length_check = LengthCheckCell::default();
        Ok(TokenSession { session, raw: self.raw, traits, length_check })
    }
}

/// Loads and initialises a module.
pub(crate) fn initialise(module: &Path) -> Result<Pkcs11, OpenError> {
    let context = Pkcs11::new(module).map_err(|source| OpenError::Load {
        module: module.display().to_string(),
        why: source.to_string(),
    })?;
    match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) => {}
        Err(CryptokiError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {
            tracing::warn!(
                "the module is initialised already: somebody else in this process uses it"
            );
        }
        Err(error) => return Err(TokenError::from(error).into()),
    }
    Ok(context)
}

/// One session, owned by one thread.
pub(crate) struct TokenSession {
    pub(crate) session: Session,
    pub(crate) raw: RawModule,
    pub(crate) traits: TokenTraits,
    pub(crate) length_check: LengthCheckCell,
}

impl TokenSession {
    pub(crate) fn encrypt(
        &self,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        data: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        Ok(Zeroizing::new(self.session.encrypt(mechanism, key, data)?))
    }

    pub(crate) fn decrypt(
        &self,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        data: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        Ok(Zeroizing::new(self.session.decrypt(mechanism, key, data)?))
    }

    pub(crate) fn sign(
        &self,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        data: &[u8],
    ) -> Result<Vec<u8>, TokenError> {
        Ok(self.session.sign(mechanism, key, data)?)
    }

    /// An object of known value, with those of the attributes that the token holds; the value in the
    /// template is wiped after the call.
    pub(crate) fn create_secret(
        &self,
        template: Vec<Attribute>,
    ) -> Result<ObjectHandle, TokenError> {
        let mut template = self.traits.held(template);
        let made = self.session.create_object(&template);
        for attribute in &mut template {
            if let Attribute::Value(value) = attribute {
                value.zeroize();
            }
        }
        Ok(made?)
    }

    /// An AES key made in the token, with those of the attributes that the token holds.
    pub(crate) fn generate_aes(
        &self,
        template: Vec<Attribute>,
    ) -> Result<ObjectHandle, TokenError> {
        Ok(self.session.generate_key(&Mechanism::AesKeyGen, &self.traits.held(template))?)
    }

    /// The one object with this label and the profile's class. More than one is refused: which of
    /// them a call would use is anybody's guess.
    pub(crate) fn find(
        &self,
        profile: &KeyProfile,
        label: &str,
    ) -> Result<Result<ObjectHandle, NotOne>, TokenError> {
        let template = [Attribute::Class(class(profile)), Attribute::Label(label.into())];
        let found = self.session.find_objects(&template)?;
        Ok(match found.as_slice() {
            [one] => Ok(*one),
            [] => Err(NotOne::None),
            _ => Err(NotOne::Several),
        })
    }
}

/// How many objects were found where one was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotOne {
    None,
    Several,
}

/// Why there is no token to talk to.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum OpenError {
    #[error("loading the PKCS#11 module {module}: {why}")]
    Load { module: String, why: String },
    #[error("no token is labelled {label:?}; check the label and the module's own configuration")]
    NoToken { label: String },
    #[error(transparent)]
    Token(#[from] TokenError),
}
