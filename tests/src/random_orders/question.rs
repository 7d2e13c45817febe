//! One random question: the order, and what `soft` says of an answer to it.

use std::fmt;

use anyhow::Context as _;
use hsm_adapter::protocol::{Answer, Message, Order, PinKey};
use hsm_adapter::register::{KeyAlgorithm, MacProfile};
use hsm_adapter::vocabulary::{MacAlgorithm, MacPadding, Pan, PinBlock, PinBlockFormat};

use super::{Key, RandomKeys};
use crate::soft::mac::{
    Padding, cbc_mac_aes, cbc_mac_tdes, cmac_aes, cmac_tdes, hmac_sha256, retail_mac,
};
use crate::soft::pin::{PinFormat, clear_block, encipher, open_pin};
use crate::soft::random::Random;

/// A random order and its judge.
pub struct Question {
    /// What to ask.
    pub order: Order,
    what: String,
    judge: Judge,
}

/// What came back, in the terms of no protocol.
#[derive(Debug)]
pub enum Reply<'a> {
    /// An answer.
    Answer(&'a Answer),
    /// The block was said to be no PIN block.
    BlockRefused,
    /// Something else.
    Nothing,
}

/// What `soft` thinks of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A block with the same PIN.
    Translated,
    /// Refused, and it was none.
    Refused,
    /// The right MAC, or the right word on one.
    Mac,
    /// Not what `soft` says.
    Different,
}

/// Whether a reply is the right one.
type Judge = Box<dyn Fn(&Reply<'_>) -> Verdict + Send + Sync>;

/// No longer message: the cost is in the calls, and 200 bytes are every rest of every block.
const MESSAGE_BYTES_MAX: usize = 200;

impl RandomKeys {
    /// The next question of this source.
    ///
    /// # Errors
    /// None in practice: the keys have the sizes of their algorithms.
    pub fn question(&self, random: &mut Random) -> anyhow::Result<Question> {
        if random.between(0, 1) == 0 { translation(self, random) } else { mac(self, random) }
    }
}

impl Question {
    /// Whether this is the right reply.
    pub fn judge(&self, reply: &Reply<'_>) -> Verdict {
        (self.judge)(reply)
    }
}

fn translation(keys: &RandomKeys, random: &mut Random) -> anyhow::Result<Question> {
    let (from, to) = (pick(random, &keys.zones_in), pick(random, &keys.zones_out));
    let (inside, outside) = (random.pick(&from.profile.formats), random.pick(&to.profile.formats));
    let (pan, pin, format) = (random.pan(), random.pin(), soft_format(inside));
    let block = if random.between(0, 7) == 0 {
        random.bytes(inside.block_bytes())
    } else {
        let fill = random.fill(format, pin.len());
        encipher(format, &from.value, &pan, &clear_block(format, &pin, &pan, &fill)?)?
    };
    let expected = open_pin(format, &from.value, &pan, &block);
    let side =
        |key: &Key, format| PinKey { key: key.profile.label.clone().into(), format, ksn: None };
    let order = Order::TranslatePin {
        pan: Pan::parse(&pan)?,
        block: PinBlock::new(block.clone())?,
        from: side(from, inside),
        to: side(to, outside),
    };
    let (from, to_label) = (&from.profile.label, &to.profile.label);
    let block = hex::encode_upper(block);
    let what = format!(
        "{inside} under {from} to {outside} under {to_label}, PAN {pan}, block {block}, soft says \
         {expected:?}"
    );
    let value = to.value.clone();
    let judge = move |reply: &Reply<'_>| match (reply, &expected) {
        (Reply::Answer(Answer::Block { block, .. }), Ok(pin)) => {
            let format = soft_format(outside);
            let found = open_pin(format, &value, &pan, block.expose());
            // Format 0 leaves no choice at all.
            let exact = || {
                let clear = clear_block(format, pin, &pan, "")?;
                encipher(format, &value, &pan, &clear)
            };
            let is_exact =
                format != PinFormat::Iso0 || exact().is_ok_and(|exact| exact == block.expose());
            let is_right = found.as_ref() == Ok(pin) && is_exact;
            if is_right { Verdict::Translated } else { Verdict::Different }
        }
        (Reply::BlockRefused, Err(_)) => Verdict::Refused,
        (Reply::Answer(_) | Reply::BlockRefused | Reply::Nothing, Ok(_) | Err(_)) => {
            Verdict::Different
        }
    };
    Ok(Question { order, what, judge: Box::new(judge) })
}

fn mac(keys: &RandomKeys, random: &mut Random) -> anyhow::Result<Question> {
    let key = pick(random, &keys.macs);
    let profile = key.profile.mac.context("a MAC key")?;
    let message = random.message(MESSAGE_BYTES_MAX);
    let full = soft_mac(key, profile, &message)?;
    let (name, longest) = (key.profile.label.clone().into(), usize::from(profile.length));
    let message = Message(message);
    let what = format!("{profile:?} under {}", key.profile.label);
    let verified = |right: bool| -> Judge {
        Box::new(move |reply| match reply {
            Reply::Answer(Answer::Verified(said)) if *said == right => Verdict::Mac,
            Reply::Answer(_) | Reply::BlockRefused | Reply::Nothing => Verdict::Different,
        })
    };
    let (order, judge): (Order, Judge) = match random.between(0, 3) {
        0 => {
            let mac = Message(full[..longest].to_vec());
            (Order::VerifyMac { key: name, ksn: None, message, mac }, verified(true))
        }
        1 => {
            let mut mac = full[..longest].to_vec();
            mac[random.between(0, longest - 1)] ^= 1 << random.between(0, 7);
            let mac = Message(mac);
            (Order::VerifyMac { key: name, ksn: None, message, mac }, verified(false))
        }
        _ => {
            let length = random.between(4, longest);
            let wanted = full[..length].to_vec();
            let length = Some(length as u8);
            let order = Order::GenerateMac { key: name, ksn: None, message, length };
            let judge = move |reply: &Reply<'_>| match reply {
                Reply::Answer(Answer::Mac { mac, .. }) if mac.0 == wanted => Verdict::Mac,
                Reply::Answer(_) | Reply::BlockRefused | Reply::Nothing => Verdict::Different,
            };
            (order, Box::new(judge))
        }
    };
    Ok(Question { order, what, judge })
}

fn soft_mac(key: &Key, profile: MacProfile, message: &[u8]) -> anyhow::Result<Vec<u8>> {
    let padding = match profile.padding {
        Some(MacPadding::One) => Padding::Method1,
        Some(MacPadding::Two) | None => Padding::Method2,
    };
    let (value, is_aes) = (&key.value, key.profile.algorithm == KeyAlgorithm::Aes);
    Ok(match profile.algorithm {
        MacAlgorithm::Retail => retail_mac(value, padding, message)?.to_vec(),
        MacAlgorithm::CbcMac if is_aes => cbc_mac_aes(value, padding, message)?.to_vec(),
        MacAlgorithm::CbcMac => cbc_mac_tdes(value, padding, message)?.to_vec(),
        MacAlgorithm::Cmac if is_aes => cmac_aes(value, message)?.to_vec(),
        MacAlgorithm::Cmac => cmac_tdes(value, message)?.to_vec(),
        MacAlgorithm::HmacSha256 => hmac_sha256(value, message)?.to_vec(),
    })
}

fn soft_format(format: PinBlockFormat) -> PinFormat {
    match format {
        PinBlockFormat::Iso0 => PinFormat::Iso0,
        PinBlockFormat::Iso1 => PinFormat::Iso1,
        PinBlockFormat::Iso3 => PinFormat::Iso3,
        PinBlockFormat::Iso4 => PinFormat::Iso4,
    }
}

fn pick<'k>(random: &mut Random, keys: &'k [Key]) -> &'k Key {
    &keys[random.between(0, keys.len() - 1)]
}

/// The question without key values; the made-up ones of a block are no secret.
impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.order.operation(), self.what)
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Question({self})")
    }
}
