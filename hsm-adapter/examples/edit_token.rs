//! Edits a disposable token behind the gateway's back, for the tests of the key lint: another
//! process with the HSM PIN, as an attacker or a careless hand would be. `SOFTHSM2_CONF` names the
//! token.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, AttributeType};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    module: PathBuf,
    #[arg(long)]
    token_label: String,
    #[arg(long)]
    pin_file: PathBuf,
    /// CKA_LABEL of the object that is copied out of its attributes and, unless there is `--beside`,
    /// deleted.
    #[arg(long)]
    object: String,
    /// Leaves the object as it is, and makes the new one under this label.
    #[arg(long)]
    beside: Option<String>,
    /// The new object's value, hex. Without it nothing is made.
    #[arg(long)]
    value: Option<String>,
    /// The one other attribute of the new object: `WRAP=true`, `ALLOWED_MECHANISMS=DES3_CBC`.
    #[arg(long)]
    set: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let context = Pkcs11::new(&arguments.module)?;
    context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let mut token = None;
    for slot in context.get_slots_with_token()? {
        if context.get_token_info(slot)?.label() == arguments.token_label {
            token = Some(slot);
        }
    }
    let session = context.open_rw_session(token.context("no token of that label")?)?;
    let pin = std::fs::read_to_string(&arguments.pin_file)?;
    session.login(UserType::User, Some(&AuthPin::new(pin.trim_end().into())))?;
    let found = session.find_objects(&[Attribute::Label(arguments.object.clone().into())])?;
    ensure!(found.len() == 1, "{} objects are labelled {:?}", found.len(), arguments.object);
    let mut template = session.get_attributes(found[0], &COPIED)?;
    if let Some(label) = arguments.beside {
        replace(&mut template, Attribute::Label(label.into()));
    } else {
        session.destroy_object(found[0])?;
    }
    let Some(value) = arguments.value else { return Ok(()) };
    for change in &arguments.set {
        replace(&mut template, attribute(change)?);
    }
    template.push(Attribute::Value(hex::decode(value)?));
    session.create_object(&template)?;
    Ok(())
}

/// What a secret key of the register has, besides its value.
const COPIED: [AttributeType; 18] = [
    AttributeType::Class,
    AttributeType::KeyType,
    AttributeType::Label,
    AttributeType::Id,
    AttributeType::Token,
    AttributeType::Private,
    AttributeType::Sensitive,
    AttributeType::Extractable,
    AttributeType::Modifiable,
    AttributeType::Copyable,
    AttributeType::Encrypt,
    AttributeType::Decrypt,
    AttributeType::Sign,
    AttributeType::Verify,
    AttributeType::Wrap,
    AttributeType::Unwrap,
    AttributeType::Derive,
    AttributeType::AllowedMechanisms,
];

fn replace(template: &mut Vec<Attribute>, new: Attribute) {
    template.retain(|old| old.attribute_type() != new.attribute_type());
    template.push(new);
}

fn attribute(change: &str) -> anyhow::Result<Attribute> {
    let (name, value) = change.split_once('=').context("NAME=VALUE")?;
    let flag = value == "true";
    Ok(match name {
        "PRIVATE" => Attribute::Private(flag),
        "SENSITIVE" => Attribute::Sensitive(flag),
        "EXTRACTABLE" => Attribute::Extractable(flag),
        "MODIFIABLE" => Attribute::Modifiable(flag),
        "COPYABLE" => Attribute::Copyable(flag),
        "ENCRYPT" => Attribute::Encrypt(flag),
        "DECRYPT" => Attribute::Decrypt(flag),
        "SIGN" => Attribute::Sign(flag),
        "VERIFY" => Attribute::Verify(flag),
        "WRAP" => Attribute::Wrap(flag),
        "UNWRAP" => Attribute::Unwrap(flag),
        "DERIVE" => Attribute::Derive(flag),
        "ALLOWED_MECHANISMS" => Attribute::AllowedMechanisms(match value {
            "DES3_ECB" => vec![MechanismType::DES3_ECB],
            "DES3_CBC" => vec![MechanismType::DES3_CBC],
            "both" => vec![MechanismType::DES3_ECB, MechanismType::DES3_CBC],
            other => bail!("no mechanism {other}"),
        }),
        other => bail!("no attribute {other}"),
    })
}
