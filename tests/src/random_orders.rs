//! Random translations and MACs, asked of an HSM worker and of `soft`: the two must agree.
//!
//! Keys, formats, PANs of 8 to 19 digits, PINs of 4 to 12, messages, lengths, and blocks that are no
//! PIN blocks, all from one seed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hsm_adapter::client::{LinkError, TokenLink};
use hsm_adapter::error::Failure;
use hsm_adapter::protocol::{Answer, Message, Order, PinKey};
use hsm_adapter::register::{KeyAlgorithm, KeyProfile, MacProfile};
use hsm_adapter::vocabulary::{
    KeyLabel, KeyRole, MacAlgorithm, MacPadding, Pan, PinBlock, PinBlockFormat,
};
use softhsm::{PlannedKey, PlannedValue};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::soft::mac::{
    Padding, cbc_mac_aes, cbc_mac_tdes, cmac_aes, cmac_tdes, hmac_sha256, retail_mac,
};
use crate::soft::pin::{PinFormat, clear_block, encipher, open_pin};
use crate::soft::random::Random;

/// Orders at the worker at once.
const IN_FLIGHT: usize = 32;
/// No longer message: the cost is in the calls, and 200 bytes are every rest of every block.
const MESSAGE_BYTES_MAX: usize = 200;

/// A token's random keys, in the clear.
#[derive(Debug)]
pub struct RandomKeys {
    zones_in: Vec<Key>,
    zones_out: Vec<Key>,
    macs: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    profile: KeyProfile,
    value: Vec<u8>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Compared {
    /// Translations that gave a block.
    pub translated: usize,
    /// Blocks that were no PIN block.
    pub refused: usize,
    /// MACs made or verified.
    pub macs: usize,
    /// Where worker and `soft` differ, in words, no values but the made-up ones.
    pub differences: Vec<String>,
}

impl Compared {
    /// All cases.
    pub fn cases(&self) -> usize {
        self.translated + self.refused + self.macs + self.differences.len()
    }
}

impl RandomKeys {
    /// Every role, algorithm, padding and length of key.
    ///
    /// # Errors
    /// None in practice: the labels are right.
    pub fn of(random: &mut Random) -> anyhow::Result<Self> {
        use KeyAlgorithm::{Aes, Hmac, Tdes};
        use PinBlockFormat::{Iso0, Iso1, Iso3, Iso4};
        let key = |label: String, role, algorithm, value: &[u8]| -> anyhow::Result<Key> {
            let profile = KeyProfile::new(KeyLabel::parse(&label)?, role, algorithm);
            Ok(Key { profile, value: value.to_vec() })
        };
        let (mut zones_in, mut zones_out, mut macs) = (Vec::new(), Vec::new(), Vec::new());
        for (keys, name, role, tdes) in [
            (&mut zones_in, "in", KeyRole::ZonePinIn, vec![Iso0, Iso1, Iso3]),
            (&mut zones_out, "out", KeyRole::ZonePinOut, vec![Iso0, Iso3]),
        ] {
            for number in 0..3 {
                let label = format!("random.{name}.tdes{number}");
                let mut zone = key(label, role, Tdes, &random.tdes_key())?;
                zone.profile.formats.clone_from(&tdes);
                keys.push(zone);
            }
            for bytes in [16, 24, 32] {
                let label = format!("random.{name}.aes{bytes}");
                let mut zone = key(label, role, Aes, &random.bytes(bytes))?;
                zone.profile.formats = vec![Iso4];
                keys.push(zone);
            }
        }
        let (one, two) = (Some(MacPadding::One), Some(MacPadding::Two));
        for (algorithm, cipher, bytes, padding, length) in [
            (MacAlgorithm::Retail, Tdes, 16, one, 8),
            (MacAlgorithm::Retail, Tdes, 16, two, 8),
            (MacAlgorithm::CbcMac, Tdes, 16, one, 8),
            (MacAlgorithm::CbcMac, Tdes, 16, two, 8),
            (MacAlgorithm::CbcMac, Aes, 16, one, 16),
            (MacAlgorithm::CbcMac, Aes, 32, two, 16),
            (MacAlgorithm::Cmac, Tdes, 16, None, 8),
            (MacAlgorithm::Cmac, Aes, 16, None, 16),
            (MacAlgorithm::Cmac, Aes, 24, None, 16),
            (MacAlgorithm::Cmac, Aes, 32, None, 16),
            (MacAlgorithm::HmacSha256, Hmac, 32, None, 32),
            (MacAlgorithm::HmacSha256, Hmac, 64, None, 32),
        ] {
            let value =
                if cipher == Tdes { random.tdes_key().to_vec() } else { random.bytes(bytes) };
            let label = format!("random.mac{}", macs.len());
            let mut mac = key(label, KeyRole::Mac, cipher, &value)?;
            let (length_min, empty_message) = (Some(4), true);
            mac.profile.mac =
                Some(MacProfile { algorithm, padding, length, length_min, empty_message });
            macs.push(mac);
        }
        Ok(Self { zones_in, zones_out, macs })
    }

    /// As a token's plan takes them.
    pub fn planned(&self) -> Vec<PlannedKey> {
        let keys = self.zones_in.iter().chain(&self.zones_out).chain(&self.macs);
        keys.map(|key| PlannedKey {
            profile: key.profile.clone(),
            value: Some(PlannedValue(key.value.clone().into())),
        })
        .collect()
    }
}

/// Asks this many cases of the worker and compares.
///
/// # Errors
/// A worker that does not answer.
pub async fn compare(
    link: &Arc<TokenLink>,
    keys: &Arc<RandomKeys>,
    random: &mut Random,
    cases: usize,
) -> anyhow::Result<Compared> {
    let mut tasks = JoinSet::new();
    for number in 0..IN_FLIGHT {
        let (link, keys, mut random) =
            (Arc::clone(link), Arc::clone(keys), Random::of(random.bits()));
        let share = cases / IN_FLIGHT + usize::from(number < cases % IN_FLIGHT);
        tasks.spawn(async move {
            let mut compared = Compared::default();
            for _ in 0..share {
                if random.between(0, 1) == 0 {
                    translation(&link, &keys, &mut random, &mut compared).await?;
                } else {
                    mac(&link, &keys, &mut random, &mut compared).await?;
                }
            }
            anyhow::Ok(compared)
        });
    }
    let mut all = Compared::default();
    while let Some(task) = tasks.join_next().await {
        let compared = task??;
        all.translated += compared.translated;
        all.refused += compared.refused;
        all.macs += compared.macs;
        all.differences.extend(compared.differences);
    }
    Ok(all)
}

async fn translation(
    link: &TokenLink,
    keys: &RandomKeys,
    random: &mut Random,
    compared: &mut Compared,
) -> anyhow::Result<()> {
    let (from, to) = (pick(random, &keys.zones_in), pick(random, &keys.zones_out));
    let (inside, outside) = (random.pick(&from.profile.formats), random.pick(&to.profile.formats));
    let (pan, pin, format) = (random.pan(), random.pin(), soft_format(inside));
    let block = if random.between(0, 7) == 0 {
        random.bytes(inside.block_bytes())
    } else {
        let fill = random.fill(format, pin.len());
        encipher(format, &from.value, &pan, &clear_block(format, &pin, &pan, &fill)?)?
    };
    let side =
        |key: &Key, format| PinKey { key: key.profile.label.clone().into(), format, ksn: None };
    let order = Order::TranslatePin {
        pan: Pan::parse(&pan)?,
        block: PinBlock::new(block.clone())?,
        from: side(from, inside),
        to: side(to, outside),
    };

    let answer = ask(link, &order).await;

    let expected = open_pin(format, &from.value, &pan, &block);
    match (&answer, &expected) {
        (Ok(Answer::Block { block, .. }), Ok(pin)) => {
            let format = soft_format(outside);
            let found = open_pin(format, &to.value, &pan, block.expose());
            // Format 0 leaves no choice at all.
            let is_exact = format != PinFormat::Iso0
                || encipher(format, &to.value, &pan, &clear_block(format, pin, &pan, "")?)?
                    == block.expose();
            if found.as_ref() == Ok(pin) && is_exact {
                compared.translated += 1;
                return Ok(());
            }
        }
        (Err(LinkError::Answered(Failure::PinBlockRefused)), Err(_)) => {
            compared.refused += 1;
            return Ok(());
        }
        (_, Ok(_) | Err(_)) => {}
    }
    let (from, to) = (&from.profile.label, &to.profile.label);
    let block = hex::encode_upper(block);
    compared.differences.push(format!(
        "{inside} under {from} to {outside} under {to}, PAN {pan}, block {block}: {answer:?}, and \
         soft says {expected:?}"
    ));
    Ok(())
}

/// Whether an answer is the right one.
type Judge = Box<dyn Fn(&Answer) -> bool + Send>;

async fn mac(
    link: &TokenLink,
    keys: &RandomKeys,
    random: &mut Random,
    compared: &mut Compared,
) -> anyhow::Result<()> {
    let key = pick(random, &keys.macs);
    let profile = key.profile.mac.context("a MAC key")?;
    let message = random.message(MESSAGE_BYTES_MAX);
    let full = soft_mac(key, profile, &message)?;
    let (name, longest) = (key.profile.label.clone().into(), usize::from(profile.length));
    let message = Message(message);
    let (order, is_right): (Order, Judge) = match random.between(0, 3) {
        0 => {
            let mac = Message(full[..longest].to_vec());
            let order = Order::VerifyMac { key: name, ksn: None, message, mac };
            (order, Box::new(|answer| matches!(answer, Answer::Verified(true))))
        }
        1 => {
            let mut mac = full[..longest].to_vec();
            mac[random.between(0, longest - 1)] ^= 1 << random.between(0, 7);
            let order = Order::VerifyMac { key: name, ksn: None, message, mac: Message(mac) };
            (order, Box::new(|answer| matches!(answer, Answer::Verified(false))))
        }
        _ => {
            let length = random.between(4, longest);
            let wanted = full[..length].to_vec();
            let length = Some(length as u8);
            let order = Order::GenerateMac { key: name, ksn: None, message, length };
            let is_right =
                move |answer: &Answer| matches!(answer, Answer::Mac { mac, .. } if mac.0 == wanted);
            (order, Box::new(is_right))
        }
    };

    let answer = ask(link, &order).await;

    if answer.as_ref().is_ok_and(is_right) {
        compared.macs += 1;
    } else {
        let what = format!("{:?} under {}", profile, key.profile.label);
        compared.differences.push(format!("{what}: {answer:?} to {}", order.operation()));
    }
    Ok(())
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

async fn ask(link: &TokenLink, order: &Order) -> Result<Answer, LinkError> {
    link.call(order, Instant::now() + Duration::from_secs(10)).await.1
}
