//! What a DUKPT terminal sends, made in software: a PIN block and a MAC under the keys of one
//! transaction.

use harness::acquirer::{Answer, Client};
use harness::demo_keys::DemoKeys;
use harness::soft::dukpt_aes::{self, KeyType, Usage};
use harness::soft::dukpt_tdes;
use harness::soft::mac::cmac_aes;
use harness::soft::pin::{PinFormat, seal_pin};
use reqwest::Method;
use serde_json::{Value, json};

pub(crate) const PAN: &str = "4761737909457820";
pub(crate) const PIN: &str = "4711";
/// The start of the metric lines that count PIN operations asked of the token.
pub(crate) const PIN_CALLS: &str = "tollgate_hsm_operations_total{operation=\"pin_";

/// A device of `bdk.terminals` (AES, iso4) or `bdk.terminals-legacy` (TDES, iso0), by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminal {
    Aes(u16),
    Tdes(u16),
}

impl Terminal {
    pub(crate) fn bdk(self) -> &'static str {
        match self {
            Self::Aes(_) => "bdk.terminals",
            Self::Tdes(_) => "bdk.terminals-legacy",
        }
    }

    pub(crate) fn format(self) -> PinFormat {
        match self {
            Self::Aes(_) => PinFormat::Iso4,
            Self::Tdes(_) => PinFormat::Iso0,
        }
    }

    /// The serial number of its transaction, whole.
    pub(crate) fn ksn(self, counter: u32) -> String {
        match self {
            Self::Aes(device) => format!("12345678{device:08X}{counter:08X}"),
            // The device's 19 bits end in the middle of a digit, before the counter's 21.
            Self::Tdes(device) => {
                format!("FFFF9876{:012X}", u64::from(device) << 21 | u64::from(counter))
            }
        }
    }

    pub(crate) fn block(self, counter: u32, pan: &str, pin: &str) -> String {
        let (bdk, ksn) = (DemoKeys::load().value(self.bdk()), self.ksn(counter));
        let key = match self {
            Self::Aes(_) => {
                let (ksn, usage) = (dukpt_aes::ksn(&ksn).unwrap(), Usage::PinEncryption);
                dukpt_aes::working_key_of_bdk(&bdk, &ksn, usage, KeyType::Aes128).unwrap()
            }
            Self::Tdes(_) => {
                let (bdk, ksn) = (bdk.try_into().unwrap(), dukpt_tdes::ksn(&ksn).unwrap());
                let initial = dukpt_tdes::initial_key(&bdk, &ksn).unwrap();
                let key = dukpt_tdes::transaction_key(&initial, &ksn).unwrap();
                dukpt_tdes::pin_key(&key).to_vec()
            }
        };
        seal_pin(self.format(), &key, pan, pin).map(hex::encode_upper).unwrap()
    }

    /// `{"key", "format", "ksn"}` of its transaction.
    pub(crate) fn from(self, counter: u32) -> Value {
        let format = self.format().to_string();
        json!({"key": self.bdk(), "format": format, "ksn": self.ksn(counter)})
    }

    /// Has the block of a transaction translated to the billing zone, iso0.
    pub(crate) async fn translate(self, client: &Client, counter: u32) -> Answer {
        let block = self.block(counter, PAN, PIN);
        let body = json!({"pan": PAN, "pin_block": block, "from": self.from(counter),
            "to": {"key": "zpk.billing", "format": "iso0"}});
        ask(client, "/v1/pin/translate", &body).await
    }
}

/// The MAC of an AES device's request, eight bytes, under this base derivation key.
pub(crate) fn mac(bdk: &[u8], ksn: &str, message: &[u8]) -> String {
    let (ksn, usage) = (dukpt_aes::ksn(ksn).unwrap(), Usage::MacGeneration);
    let key = dukpt_aes::working_key_of_bdk(bdk, &ksn, usage, KeyType::Aes128).unwrap();
    hex::encode_upper(&cmac_aes(&key, message).unwrap()[..8])
}

pub(crate) async fn ask(client: &Client, path: &str, body: &Value) -> Answer {
    client.send(Method::POST, path, &[], body.to_string().into_bytes()).await.unwrap()
}

/// Status and slug of a refusal.
pub(crate) fn refusal(answer: &Answer) -> (u16, String) {
    (answer.status.as_u16(), answer.slug().unwrap_or_default())
}
