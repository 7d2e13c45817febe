//! One order, one operation: the table of what a worker can be asked.

use super::chain;
use super::keys::KeyTable;
use super::self_test;
use super::token::TokenSession;
use crate::error::{CkrClass, Failure, TokenError};
use crate::operation::translate::{Side, translate};
use crate::operation::{mac, seal};
use crate::protocol::{Answer, Message, Order};
use crate::vocabulary::{KeyName, KeyRole, Mode};

/// Runs one order on one session.
pub(super) fn perform(
    session: &TokenSession,
    keys: &KeyTable,
    order: &Order,
) -> Result<Answer, Failure> {
    match order {
        Order::TranslatePin { pan, block, from, to } => {
            let inbound = keys.of_role(&from.key, KeyRole::ZonePinIn)?;
            let outbound = keys.active_of_role(&to.key, KeyRole::ZonePinOut)?;
            let from = Side { key: &inbound, format: from.format };
            let to = Side { key: &outbound, format: to.format };
            let block = translate(session, pan, block, &from, &to)?;
            Ok(Answer::Block { block, key_version: outbound.profile.version })
        }
        Order::VerifyPin { .. } => Err(Failure::UnknownKey),
        Order::GenerateMac { key, ksn: _, message, length } => {
            let key = keys.active_of_role(key, KeyRole::Mac)?;
            let mac = mac::generate(session, &key, &message.0, *length)?;
            let Some(profile) = key.profile.mac else { return Err(Failure::UnknownKey) };
            let algorithm = profile.algorithm;
            Ok(Answer::Mac { mac, algorithm, key_version: key.profile.version })
        }
        Order::VerifyMac { key, ksn: _, message, mac } => {
            let key = keys.of_role(key, KeyRole::Mac)?;
            Ok(Answer::Verified(mac::verify(session, &key, &message.0, mac)?))
        }
        Order::MakeDataKey { kek } => {
            let kek = keys.active_of_role(kek, KeyRole::QueueKek)?;
            let (clear, wrapped) = seal::make(session, &kek)?;
            Ok(Answer::DataKey { clear, wrapped, kek_version: kek.profile.version })
        }
        Order::OpenDataKey { kek, wrapped } => {
            let kek = keys.of_role(kek, KeyRole::QueueKek)?;
            Ok(Answer::OpenedDataKey(seal::open(session, &kek, wrapped)?))
        }
        Order::Random { bytes } => {
            let mut random = Message(vec![0; usize::from((*bytes).clamp(1, 1024))]);
            session.session.generate_random_slice(&mut random.0).map_err(TokenError::from)?;
            Ok(Answer::Random(random))
        }
        Order::ListKeys => Ok(Answer::Keys(keys.facts(session)?)),
        Order::SelfTest => {
            self_test::run(session, &keys.needs()).map(Answer::Proved).map_err(|error| {
                Failure::Token {
                    function: "self-test".into(),
                    code: chain(&error),
                    class: CkrClass::Restart,
                }
            })
        }
        Order::Lint => Err(Failure::UnknownKey),
        Order::ImportKey { .. } | Order::SetKeyState { .. } | Order::ReloadKeys => {
            Err(Failure::UnknownKey)
        }
    }
}

/// Where a clear PIN is while the order runs: the mode of its inbound key.
pub(super) fn mode_of(keys: &KeyTable, order: &Order) -> Option<Mode> {
    let mode = |name: &KeyName| keys.get(name).ok().map(|key| key.profile.mode);
    match order {
        Order::TranslatePin { from, .. } | Order::VerifyPin { from, .. } => mode(&from.key),
        Order::GenerateMac { .. }
        | Order::VerifyMac { .. }
        | Order::MakeDataKey { .. }
        | Order::OpenDataKey { .. }
        | Order::Random { .. }
        | Order::ListKeys
        | Order::SelfTest
        | Order::Lint
        | Order::ImportKey { .. }
        | Order::SetKeyState { .. }
        | Order::ReloadKeys => None,
    }
}
