//! One order, one operation: the table of what a worker can be asked.

use super::chain;
use super::change;
use super::keys::{KeyTable, some_found};
use super::lint;
use super::self_test;
use super::token::TokenSession;
use crate::error::{CkrClass, Failure, TokenError};
use crate::operation::checkpoint::{self, CheckpointText, Signed};
use crate::operation::side::{NamedKey, NamedSide, Purpose, Side, one_mode};
use crate::operation::{mac, seal, translate, verify_pin};
use crate::protocol::{Answer, Message, Order};
use crate::vocabulary::{KeyRole, Mode};

/// Runs one order on one session.
pub(super) fn perform(
    session: &TokenSession,
    keys: &KeyTable,
    order: &Order,
) -> Result<Answer, Failure> {
    match order {
        Order::TranslatePin { pan, block, from, to } => {
            let (from, to) = translate::sides(keys, from, to)?;
            let (inbound, outbound) = (from.key.ready(session)?, to.key.ready(session)?);
            let from = Side { key: inbound.key(), format: from.format };
            let to = Side { key: outbound.key(), format: to.format };
            let block = translate::translate(session, pan, block, &from, &to)?;
            Ok(Answer::Block { block, key_version: to.key.profile.version })
        }
        Order::VerifyPin { pan, block, from, reference } => {
            let from = NamedSide::find(keys, from, Purpose::PinIn)?;
            let key = verify_pin::reference_key(keys, reference)?;
            let mode = one_mode(from.key.profile(), &key.profile)?;
            from.check_ksn()?;
            let inbound = from.key.ready(session)?;
            let from = Side { key: inbound.key(), format: from.format };
            let verified = match mode {
                Mode::InWorker => verify_pin::verify(session, pan, block, &from, &key, reference)?,
                Mode::InToken | Mode::Vendor => return Err(no_such_mode(mode)),
            };
            Ok(Answer::PinVerified { verified, key_version: key.profile.version })
        }
        Order::GenerateMac { key: name, ksn, message, length } => {
            let named = NamedKey::find(keys, name, ksn.as_ref(), Purpose::MacGenerate)?;
            if !named.ksn_fits() {
                return Err(Failure::KeyNotForThis(format!("no device of {name} has this KSN")));
            }
            let ready = named.ready(session)?;
            let mac = mac::generate(session, ready.key(), &message.0, *length)?;
            let Some(profile) = named.profile().mac else { return Err(Failure::UnknownKey) };
            let (algorithm, key_version) = (profile.algorithm, named.profile().version);
            Ok(Answer::Mac { mac: Message(mac), algorithm, key_version })
        }
        Order::VerifyMac { key, ksn, message, mac } => {
            let named = NamedKey::find(keys, key, ksn.as_ref(), Purpose::MacVerify)?;
            // A KSN that no device of this key has makes the MAC a wrong one.
            if !named.ksn_fits() {
                return Ok(Answer::Verified(false));
            }
            let ready = named.ready(session)?;
            Ok(Answer::Verified(mac::verify(session, ready.key(), &message.0, &mac.0)?))
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
        Order::RewrapDataKey { kek, wrapped } => {
            let from = keys.of_role(kek, KeyRole::QueueKek)?;
            let to = keys.active_of_role(&kek.label.clone().into(), KeyRole::QueueKek)?;
            let wrapped = seal::rewrap(session, &from, &to, wrapped)?;
            Ok(Answer::RewrappedDataKey { wrapped, kek_version: to.profile.version })
        }
        Order::SignCheckpoint { key, text } => {
            let text = CheckpointText::parse(&text.0)?;
            let key = keys.of_role(key, KeyRole::AuditSigning)?;
            let Signed { signature, public_key, algorithm } =
                checkpoint::sign(session, &key, text)?;
            let key_version = key.profile.version;
            Ok(Answer::CheckpointSigned { signature, public_key, algorithm, key_version })
        }
        Order::Random { bytes } => {
            let mut random = Message(vec![0; usize::from((*bytes).clamp(1, 1024))]);
            session.session.generate_random_slice(&mut random.0).map_err(TokenError::from)?;
            Ok(Answer::Random(random))
        }
        Order::ListKeys => Ok(Answer::Keys(keys.facts(session)?)),
        Order::Heartbeat => {
            some_found(&keys.register(), session)?;
            let right = self_test::beat(session, &keys.needs())?;
            Ok(Answer::Beat { right })
        }
        Order::SelfTest => {
            self_test::all(session, keys).map(Answer::Proved).map_err(|error| Failure::Token {
                function: "self-test".into(),
                code: chain(&error),
                class: CkrClass::Restart,
            })
        }
        Order::Lint => Ok(Answer::Lint(lint::run(session, keys)?)),
        Order::ImportKey { change, kbpk, block, profile } => {
            let facts = change::import(session, keys, *change, kbpk, block, profile)?;
            Ok(Answer::Key(Box::new(facts)))
        }
        Order::SetKeyState { change, key, state, usable_until_s } => {
            let until = *usable_until_s;
            let facts = change::set_state(session, keys, *change, key, *state, until)?;
            Ok(Answer::Key(Box::new(facts)))
        }
        Order::ReloadKeys => Ok(Answer::Reloaded(change::reload(session, keys)?)),
    }
}

fn no_such_mode(mode: Mode) -> Failure {
    Failure::KeyNotForThis(format!("nothing was proved in mode {mode}"))
}

/// Where a clear PIN is while the order runs: the mode of its inbound key.
pub(super) fn mode_of(keys: &KeyTable, order: &Order) -> Option<Mode> {
    match order {
        Order::TranslatePin { from, .. } | Order::VerifyPin { from, .. } => keys.mode(&from.key),
        Order::GenerateMac { .. }
        | Order::VerifyMac { .. }
        | Order::MakeDataKey { .. }
        | Order::OpenDataKey { .. }
        | Order::RewrapDataKey { .. }
        | Order::SignCheckpoint { .. }
        | Order::Random { .. }
        | Order::ListKeys
        | Order::Heartbeat
        | Order::SelfTest
        | Order::Lint
        | Order::ImportKey { .. }
        | Order::SetKeyState { .. }
        | Order::ReloadKeys => None,
    }
}
