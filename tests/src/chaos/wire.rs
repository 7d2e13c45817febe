//! Random orders over the data API: the same questions that a worker is asked, as a client asks them.

use anyhow::{Context as _, bail};
use hsm_adapter::protocol::{Answer, Message, Order, PinKey};
use hsm_adapter::vocabulary::{MacAlgorithm, PinBlock};
use serde_json::{Value, json};

use crate::acquirer::Answer as HttpAnswer;

/// Path and body.
///
/// # Errors
/// An order that clients do not give.
pub(super) fn request_of(order: &Order) -> anyhow::Result<(&'static str, Vec<u8>)> {
    let (path, body) = if let Order::TranslatePin { pan, block, from, to } = order {
        let block = hex::encode_upper(block.expose());
        let (from, to) = (side(from), side(to));
        let body = json!({"pan": pan.expose(), "pin_block": block, "from": from, "to": to});
        ("/v1/pin/translate", body)
    } else if let Order::GenerateMac { key, message, length, .. } = order {
        let mut body = json!({"key": key.label, "message": hex::encode_upper(&message.0)});
        if let Some(length) = length {
            body["length"] = json!(length);
        }
        ("/v1/mac/generate", body)
    } else if let Order::VerifyMac { key, message, mac, .. } = order {
        let (message, mac) = (hex::encode_upper(&message.0), hex::encode_upper(&mac.0));
        ("/v1/mac/verify", json!({"key": key.label, "message": message, "mac": mac}))
    } else {
        bail!("no client asks for {}", order.operation())
    };
    Ok((path, body.to_string().into_bytes()))
}

/// What a 200 says, as a worker would have said it.
///
/// # Errors
/// A body that is not in the contract's form, or that speaks of another key or format.
pub(super) fn answer_of(order: &Order, answer: &HttpAnswer) -> anyhow::Result<Answer> {
    let body = answer.json();
    let text = |field: &str| body[field].as_str().with_context(|| format!("no {field}"));
    let version = || body["key_version"].as_u64().and_then(|version| version.try_into().ok());
    if let Order::TranslatePin { to, .. } = order {
        let said = (text("key")?, text("format")?);
        anyhow::ensure!(said == (to.key.label.as_str(), to.format.name()), "{said:?}");
        let block = PinBlock::new(hex::decode(text("pin_block")?)?)?;
        Ok(Answer::Block { block, key_version: version().context("no key_version")? })
    } else if let Order::GenerateMac { .. } = order {
        let mac = Message(hex::decode(text("mac")?)?);
        let algorithm: MacAlgorithm = serde_json::from_value(body["algorithm"].clone())?;
        let key_version = version().context("no key_version")?;
        Ok(Answer::Mac { mac, algorithm, key_version })
    } else {
        Ok(Answer::Verified(body["verified"].as_bool().context("no verified")?))
    }
}

fn side(key: &PinKey) -> Value {
    json!({"key": key.key.label, "format": key.format.name()})
}
