//! PIN translation, mode `in_token`: the block becomes an object inside the token under one key and
//! leaves it under the other. The clear PIN is never in host memory.
//!
//! - iso0 to iso0, iso3 to iso3: unwrap DES3_CBC, wrap DES3_CBC, both from a zero vector.
//! - iso4 to iso4: the outer layer off by C_Decrypt, unwrap AES_CBC, wrap AES_CBC, the outer layer on
//!   by C_Encrypt. The fill stays.
//! - iso0 to iso4: the vector of the unwrap turns the clear block into the PIN field of format 4; the
//!   wrap pads it with zeros, which its vector turns into random fill.
//! - iso4 to iso0: the vector turns the PIN field into the clear block, VALUE_LEN cuts the fill off.
//!
//! The PIN fields of formats 0 and 4 differ by a constant that depends on the PIN's length alone.
//! The length is found without a digit: the first byte of the block is unwrapped alone, wrapped
//! under a key of its own and compared with the nine ciphertexts that it may have. That is also the
//! one check there is: a wrong key passes it once in 28 times, digits and filler are not seen.
//! All other cells would need a random fill exchanged that the host does not know: refused.
//!
//! Success and every failure make the same calls.

use std::cell::OnceCell;

use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::error::{CkrClass, Failure, TokenError};
use crate::vocabulary::{Pan, PinBlock, PinBlockFormat};
use crate::worker::attributes::PIN_OBJECT;
use crate::worker::passing::Passing;
use crate::worker::token::TokenSession;

/// The calls of a cell, for the report; `None` for a cell that this mode cannot serve.
pub(crate) fn calls(from: PinBlockFormat, to: PinBlockFormat) -> Option<&'static str> {
    use PinBlockFormat::{Iso0, Iso1, Iso3, Iso4};
    match (from, to) {
        (Iso0, Iso0) | (Iso3, Iso3) => Some("unwrap DES3_CBC, wrap DES3_CBC"),
        (Iso4, Iso4) => Some("decrypt AES_CBC, unwrap AES_CBC, wrap AES_CBC, encrypt AES_CBC"),
        (Iso0, Iso4) => Some("unwrap DES3_CBC, wrap AES_CBC padding, encrypt AES_CBC"),
        (Iso4, Iso0) => Some("decrypt AES_CBC, unwrap AES_CBC cutting, wrap DES3_CBC"),
        (Iso0 | Iso1 | Iso4, Iso3) | (Iso1 | Iso3, Iso0 | Iso4) | (_, Iso1) => None,
    }
}

/// The block under the other key, given keys of attribute set `in_token`. Errors: `KeyNotForThis`
/// for a cell that cannot be served, `PinBlockRefused` for everything that is wrong with the block,
/// and the token's own.
pub(crate) fn translate(
    session: &TokenSession,
    pan: &Pan,
    block: &PinBlock,
    from: (ObjectHandle, PinBlockFormat),
    to: (ObjectHandle, PinBlockFormat),
) -> Result<PinBlock, Failure> {
    if calls(from.1, to.1).is_none() {
        let (from, to) = (from.1, to.1);
        return Err(Failure::KeyNotForThis(format!("{from} to {to} is not served in_token")));
    }
    if block.expose().len() != from.1.block_bytes() {
        return Err(Failure::PinBlockRefused);
    }
    match run(session, pan, block.expose(), from, to) {
        Err(Failure::Token { class: CkrClass::Caller, .. }) => Err(Failure::PinBlockRefused),
        outcome => outcome,
    }
}

fn run(
    session: &TokenSession,
    pan: &Pan,
    block: &[u8],
    from: (ObjectHandle, PinBlockFormat),
    to: (ObjectHandle, PinBlockFormat),
) -> Result<PinBlock, Failure> {
    use PinBlockFormat::{Iso0, Iso4};
    let inner = match from.1 {
        // Still enciphered once: what comes out is random to whoever sees it.
        Iso4 => session.decrypt(&Mechanism::AesCbc(pan.iso4_field()), from.0, block)?,
        Iso0 | PinBlockFormat::Iso1 | PinBlockFormat::Iso3 => block.to_vec().into(),
    };
    let first = unwrap(session, from, [0; 16], &inner, 1)?;
    let (length, good) = session.length_check()?.length(session, &first, from.1)?;
    drop(first);

    let (vector, bytes) = match (from.1, to.1) {
        (Iso0, Iso4) | (Iso4, Iso0) => (difference(length, pan), 8),
        (same, _) => ([0; 16], same.block_bytes()),
    };
    let object = unwrap(session, from, vector, &inner, bytes)?;
    let mut vector = [0; 16];
    if (from.1, to.1) == (Iso0, Iso4) {
        getrandom::fill(&mut vector[8..]).map_err(|error| Failure::Token {
            function: "getrandom".into(),
            code: error.to_string(),
            class: CkrClass::Restart,
        })?;
    }
    let wrapped = wrap(session, &cbc(to.1, vector), to.0, &object)?;
    drop(object);
    // A token that ignores VALUE_LEN wraps more than it was asked to unwrap.
    if wrapped.len() != to.1.block_bytes() {
        return Err(Failure::Token {
            function: "WrapKey".into(),
            code: format!("{} bytes of a PIN block of {}", wrapped.len(), to.1.block_bytes()),
            class: CkrClass::Restart,
        });
    }
    let translated = match to.1 {
        Iso4 => {
            let outer = Mechanism::AesCbc(pan.iso4_field());
            session.encrypt(&outer, to.0, &wrapped)?.to_vec()
        }
        Iso0 | PinBlockFormat::Iso1 | PinBlockFormat::Iso3 => wrapped,
    };
    match bool::from(good) {
        true => PinBlock::new(translated).map_err(|_| Failure::PinBlockRefused),
        false => Err(Failure::PinBlockRefused),
    }
}

/// One block of CBC under the cipher of a format.
fn cbc(format: PinBlockFormat, vector: [u8; 16]) -> Mechanism<'static> {
    match format {
        PinBlockFormat::Iso4 => Mechanism::AesCbc(vector),
        PinBlockFormat::Iso0 | PinBlockFormat::Iso1 | PinBlockFormat::Iso3 => {
            let [first, _] = [0, 8].map(|at| std::array::from_fn(|byte| vector[at + byte]));
            Mechanism::Des3Cbc(first)
        }
    }
}

/// What a clear block of format 0 and the first half of a PIN field of format 4 differ by, for a PIN
/// of this length: the control nibble, the filler (F and A), and the account field.
fn difference(length: u8, pan: &Pan) -> [u8; 16] {
    let mut difference = [0; 16];
    let nibble = |at: u8| match at {
        0 => 4,
        at if at >= 2 + length => 0xF ^ 0xA,
        _ => 0,
    };
    for (at, account) in (0u8..8).zip(pan.account_field()) {
        difference[usize::from(at)] = (nibble(2 * at) << 4 | nibble(2 * at + 1)) ^ account;
    }
    difference
}

/// What C_UnwrapKey is to make: `bytes` bytes of a PIN block that can be wrapped and nothing else.
pub(crate) fn pin_template(bytes: usize) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::ValueLen((bytes as u64).into()),
    ];
    template.extend(PIN_OBJECT.into_iter().filter_map(|(kind, set)| flag(kind, set)));
    template
}

/// The first `bytes` of what `wrapped` deciphers to, as an object that can only be wrapped.
fn unwrap<'s>(
    session: &'s TokenSession,
    (key, format): (ObjectHandle, PinBlockFormat),
    vector: [u8; 16],
    wrapped: &[u8],
    bytes: usize,
) -> Result<Passing<'s>, Failure> {
    let template = session.traits.unwrapped(pin_template(bytes));
    let object = session
        .session
        .unwrap_key(&cbc(format, vector), key, wrapped, &template)
        .map_err(TokenError::from)?;
    Ok(Passing { session, object })
}

fn wrap(
    session: &TokenSession,
    mechanism: &Mechanism<'_>,
    key: ObjectHandle,
    object: &Passing<'_>,
) -> Result<Vec<u8>, Failure> {
    Ok(session.raw.wrap(&session.session, mechanism, key, object.object)?)
}

/// A key that nothing else is wrapped under, and the nine ciphertexts of each format's first byte.
/// Made in the token for one session, and gone with it.
pub(crate) struct LengthCheck {
    key: ObjectHandle,
    /// Of formats 0, 3 and 4, lengths 4 to 12 each.
    known: Vec<[u8; 16]>,
}

/// Its CKA_LABEL. It is the one session object that stays.
pub(crate) const LENGTH_CHECK: &str = "length-check";
const LENGTHS: std::ops::RangeInclusive<u8> = 4..=12;
const CONTROLS: [u8; 3] = [0, 3, 4];

impl LengthCheck {
    fn new(session: &TokenSession) -> Result<Self, Failure> {
        let template = vec![
            Attribute::Token(false),
            Attribute::Label(LENGTH_CHECK.into()),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Modifiable(false),
            Attribute::Copyable(false),
            Attribute::Encrypt(true),
            Attribute::Wrap(true),
            Attribute::Decrypt(false),
            Attribute::Unwrap(false),
            Attribute::Sign(false),
            Attribute::Verify(false),
            Attribute::Derive(false),
            Attribute::ValueLen(32.into()),
            Attribute::AllowedMechanisms(vec![MechanismType::AES_ECB]),
        ];
        let key = session.generate_aes(template)?;
        let made = Passing { session, object: key };
        let mut blocks = Vec::new();
        for control in CONTROLS {
            for length in LENGTHS {
                let mut block = [0; 16];
                block[0] = control << 4 | length;
                blocks.extend(block);
            }
        }
        let known = session.encrypt(&Mechanism::AesEcb, key, &blocks)?;
        // From here on the session keeps it.
        std::mem::forget(made);
        Ok(Self { key, known: known.as_chunks().0.to_vec() })
    }

    /// The PIN's length, and whether there is one: otherwise the shortest, which serves for the calls
    /// that follow. All nine are compared.
    fn length(
        &self,
        session: &TokenSession,
        first: &Passing<'_>,
        format: PinBlockFormat,
    ) -> Result<(u8, Choice), Failure> {
        let wrapped = wrap(session, &Mechanism::AesEcb, self.key, first)?;
        let lengths = LENGTHS.count();
        let known = match format {
            PinBlockFormat::Iso0 | PinBlockFormat::Iso1 => &self.known[..lengths],
            PinBlockFormat::Iso3 => &self.known[lengths..2 * lengths],
            PinBlockFormat::Iso4 => &self.known[2 * lengths..],
        };
        let (mut found, mut good) = (*LENGTHS.start(), Choice::from(0));
        for (length, known) in LENGTHS.zip(known) {
            let equal = known.ct_eq(&wrapped);
            found = u8::conditional_select(&found, &length, equal);
            good |= equal;
        }
        Ok((found, good))
    }
}

/// The length check of a session, made when it is first needed.
#[derive(Default)]
pub(crate) struct LengthCheckCell(OnceCell<LengthCheck>);

impl TokenSession {
    fn length_check(&self) -> Result<&LengthCheck, Failure> {
        if let Some(made) = self.length_check.0.get() {
            return Ok(made);
        }
        let made = LengthCheck::new(self)?;
        Ok(self.length_check.0.get_or_init(|| made))
    }
}

/// An attribute of [`PIN_OBJECT`].
#[expect(clippy::wildcard_enum_match_arm, reason = "a flag that is not of PIN_OBJECT is none")]
fn flag(kind: AttributeType, set: bool) -> Option<Attribute> {
    Some(match kind {
        AttributeType::Token => Attribute::Token(set),
        AttributeType::Private => Attribute::Private(set),
        AttributeType::Sensitive => Attribute::Sensitive(set),
        AttributeType::Extractable => Attribute::Extractable(set),
        AttributeType::Modifiable => Attribute::Modifiable(set),
        AttributeType::Copyable => Attribute::Copyable(set),
        AttributeType::Encrypt => Attribute::Encrypt(set),
        AttributeType::Decrypt => Attribute::Decrypt(set),
        AttributeType::Sign => Attribute::Sign(set),
        AttributeType::Verify => Attribute::Verify(set),
        AttributeType::Wrap => Attribute::Wrap(set),
        AttributeType::Unwrap => Attribute::Unwrap(set),
        AttributeType::Derive => Attribute::Derive(set),
        _ => return None,
    })
}
