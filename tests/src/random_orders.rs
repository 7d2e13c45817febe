//! Random translations and MACs, asked of an HSM worker and of `soft`: the two must agree.
//!
//! Keys, formats, PANs of 8 to 19 digits, PINs of 4 to 12, messages, lengths, and blocks that are no
//! PIN blocks, all from one seed.

mod question; // one of them, and who is right

pub use question::{Question, Reply, Verdict};

use std::sync::Arc;
use std::time::Duration;

use hsm_adapter::client::{LinkError, TokenLink};
use hsm_adapter::error::Failure;
use hsm_adapter::protocol::{Answer, Order};
use hsm_adapter::register::{KeyAlgorithm, KeyProfile, MacProfile};
use hsm_adapter::vocabulary::{KeyLabel, KeyRole, MacAlgorithm, MacPadding, PinBlockFormat};
use softhsm::{PlannedKey, PlannedValue};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::soft::random::Random;

/// Orders at the worker at once.
const IN_FLIGHT: usize = 32;

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

    fn enter(&mut self, question: &Question, answer: &Result<Answer, LinkError>) {
        let reply = match answer {
            Ok(answer) => Reply::Answer(answer),
            Err(LinkError::Answered(Failure::PinBlockRefused)) => Reply::BlockRefused,
            Err(_) => Reply::Nothing,
        };
        match question.judge(&reply) {
            Verdict::Translated => self.translated += 1,
            Verdict::Refused => self.refused += 1,
            Verdict::Mac => self.macs += 1,
            Verdict::Different => self.differences.push(format!("{question}: {answer:?}")),
        }
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

    /// Every pair of zones between which a question may translate, as `[[client.grants.translate]]`.
    pub fn translate_grants(&self) -> Vec<toml::Value> {
        let zone = |key: &Key| {
            let formats = key.profile.formats.iter().map(|format| format.name());
            let formats: Vec<toml::Value> = formats.map(toml::Value::from).collect();
            let label = key.profile.label.to_string();
            toml::Table::from_iter([
                ("key".into(), label.into()),
                ("formats".into(), formats.into()),
            ])
        };
        let to: Vec<toml::Value> = self.zones_out.iter().map(|key| zone(key).into()).collect();
        let grant = |from: &Key| {
            let pair = [("from".into(), zone(from).into()), ("to".into(), to.clone().into())];
            toml::Table::from_iter(pair).into()
        };
        self.zones_in.iter().map(grant).collect()
    }

    /// The labels of the MAC keys.
    pub fn mac_labels(&self) -> Vec<String> {
        self.macs.iter().map(|key| key.profile.label.to_string()).collect()
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
                let question = keys.question(&mut random)?;
                let answer = ask(&link, &question.order).await;
                compared.enter(&question, &answer);
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

async fn ask(link: &TokenLink, order: &Order) -> Result<Answer, LinkError> {
    link.call(order, Instant::now() + Duration::from_secs(10)).await.1
}
