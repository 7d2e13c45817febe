//! The PKCS#11 floor of `make bench`: the same C_ calls as one operation makes, in a loop on one
//! thread, on the same token objects. Prints CPU microseconds (user + system) per operation as
//! JSON. `SOFTHSM2_CONF` names the token.
//!
//! What a caller could prepare once (templates, parameters) is prepared once; what the operation
//! makes and destroys (keys that DUKPT derives) is made and destroyed.

use std::hint::black_box;
use std::path::PathBuf;

use clap::Parser;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::misc::KeyDerivationStringData;
use cryptoki::mechanism::vendor_defined::VendorDefinedMechanism;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use cryptoki_sys::{CKM_AES_ECB_ENCRYPT_DATA, CKM_DES3_CMAC};
use hsm_adapter::worker::mechanism_type;
use rustix::time::{ClockId, clock_gettime};

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    module: PathBuf,
    #[arg(long)]
    token_label: String,
    #[arg(long)]
    pin_file: PathBuf,
    /// These operations instead of all.
    #[arg(long)]
    only: Vec<String>,
    /// Seconds for each operation.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
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
    let slot = token.ok_or_else(|| anyhow::anyhow!("no token of that label"))?;
    let session = context.open_rw_session(slot)?;
    let pin = std::fs::read_to_string(&arguments.pin_file)?;
    session.login(UserType::User, Some(&AuthPin::new(pin.trim_end().into())))?;
    let mut floors = Floors { session, arguments, figures: Vec::new() };
    pins(&mut floors)?;
    dukpt(&mut floors)?;
    macs(&mut floors)?;
    println!("{{{}}}", floors.figures.join(","));
    Ok(())
}

/// What was measured so far, and where.
struct Floors {
    session: Session,
    arguments: Arguments,
    figures: Vec<String>,
}

type Call<'c, const N: usize> = &'c dyn Fn(&Session, [ObjectHandle; N]) -> anyhow::Result<()>;

impl Floors {
    /// One operation on the objects of these labels, when it is wanted.
    fn measure<const N: usize>(
        &mut self,
        name: &str,
        labels: [&str; N],
        call: Call<'_, N>,
    ) -> anyhow::Result<()> {
        let only = &self.arguments.only;
        if !only.is_empty() && !only.iter().any(|only| only == name) {
            return Ok(());
        }
        let mut objects = Vec::new();
        for label in labels {
            let found = self.session.find_objects(&[Attribute::Label(label.into())])?;
            objects.push(*found.first().ok_or_else(|| anyhow::anyhow!("no object {label}"))?);
        }
        let Ok(objects) = objects.try_into() else { anyhow::bail!("{name}: labels") };
        let us = floor(self.arguments.seconds, &mut || call(&self.session, objects))?;
        self.figures.push(format!("\"{name}\":{us:.2}"));
        Ok(())
    }
}

fn pins(floors: &mut Floors) -> anyhow::Result<()> {
    floors.measure("translate", ["zpk.acquirer-a@1", "zpk.billing@1"], &recipher)?;
    let keys = ["zpk.acquirer-b@1", "zpk.billing-aes@1"];
    floors.measure("translate_iso4", keys, &|session, [from, to]| {
        let clear = open_iso4(session, from)?;
        seal_iso4(session, to, &clear)
    })?;
    // One block deciphered, one enciphered: whatever is compared afterwards.
    for (name, key) in [
        ("pin_verify_pvv", "pvk.issuer@1"),
        ("pin_verify_3624", "pvk.issuer-3624@1"),
        ("pin_verify_reference", "pin.reference@1"),
    ] {
        floors.measure(name, ["zpk.acquirer-a@1", key], &recipher)?;
    }
    Ok(())
}

fn recipher(session: &Session, [from, to]: [ObjectHandle; 2]) -> anyhow::Result<()> {
    let clear = session.decrypt(&Mechanism::Des3Ecb, from, &[0x46; 8])?;
    black_box(session.encrypt(&Mechanism::Des3Ecb, to, &clear)?);
    Ok(())
}

fn open_iso4(session: &Session, key: ObjectHandle) -> anyhow::Result<Vec<u8>> {
    let middle = session.decrypt(&Mechanism::AesEcb, key, &[0x46; 16])?;
    Ok(session.decrypt(&Mechanism::AesEcb, key, &middle)?)
}

fn seal_iso4(session: &Session, key: ObjectHandle, clear: &[u8]) -> anyhow::Result<()> {
    let middle = session.encrypt(&Mechanism::AesEcb, key, clear)?;
    black_box(session.encrypt(&Mechanism::AesEcb, key, &middle)?);
    Ok(())
}

/// One-bits of the counter in the bench's KSNs: so many steps lie between the initial key and the
/// transaction's.
const STEPS: usize = 3;

fn dukpt(floors: &mut Floors) -> anyhow::Result<()> {
    let derivation = mechanism_type(CKM_AES_ECB_ENCRYPT_DATA);
    let data = KeyDerivationStringData::new(&[0x5A; 16]);
    let derive = VendorDefinedMechanism::new(derivation, Some(&data));
    let derive = Mechanism::VendorDefined(derive);
    // SoftHSM takes attributes in their order, and after MODIFIABLE no other of a derived key.
    let derived = |use_for, mechanism| {
        let mut template = passing(use_for, mechanism, KeyType::AES);
        template.extend([Attribute::ValueLen(16.into()), Attribute::Modifiable(false)]);
        template
    };
    let (step, pin_key) =
        (derived(Use::Derive, derivation), derived(Use::Decrypt, MechanismType::AES_ECB));
    let labels = ["bdk.terminals@1", "zpk.billing-aes@1"];
    floors.measure("translate_dukpt_aes", labels, &|session, [bdk, to]| {
        // Each key goes when the next is there.
        let mut key = session.derive_key(&derive, bdk, &step)?;
        for template in std::iter::repeat_n(&step, STEPS).chain([&pin_key]) {
            let next = session.derive_key(&derive, key, template)?;
            session.destroy_object(key)?;
            key = next;
        }
        let clear = open_iso4(session, key)?;
        seal_iso4(session, to, &clear)?;
        Ok(session.destroy_object(key)?)
    })?;
    let created = |use_for| {
        let mut template = passing(use_for, MechanismType::DES3_ECB, KeyType::DES3);
        template.extend([Attribute::Modifiable(false), Attribute::Value(vec![0x46; 24])]);
        template
    };
    let (single, pin_key) = (created(Use::Encrypt), created(Use::Decrypt));
    let labels = ["bdk.terminals-legacy@1", "bdk.terminals-legacy@1.variant", "zpk.billing@1"];
    floors.measure("translate_dukpt_tdes", labels, &|session, [bdk, variant, to]| {
        for key in [bdk, variant] {
            black_box(session.encrypt(&Mechanism::Des3Ecb, key, &[0x46; 8])?);
        }
        for _ in 0..2 * STEPS {
            let key = session.create_object(&single)?;
            black_box(session.encrypt(&Mechanism::Des3Ecb, key, &[0x46; 8])?);
            session.destroy_object(key)?;
        }
        let key = session.create_object(&pin_key)?;
        recipher(session, [key, to])?;
        Ok(session.destroy_object(key)?)
    })
}

/// The one thing that a passing key may do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Encrypt,
    Decrypt,
    Derive,
}

/// The attributes that the worker gives a passing key, but for value or length, and MODIFIABLE.
fn passing(use_for: Use, mechanism: MechanismType, key_type: KeyType) -> Vec<Attribute> {
    vec![
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Copyable(false),
        Attribute::Sign(false),
        Attribute::Decrypt(use_for == Use::Decrypt),
        Attribute::Unwrap(false),
        Attribute::Derive(use_for == Use::Derive),
        Attribute::AllowedMechanisms(vec![mechanism]),
        Attribute::Encrypt(use_for == Use::Encrypt),
        Attribute::Verify(false),
        Attribute::Wrap(false),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(key_type),
    ]
}

const MESSAGE: [u8; 64] = [0x5A; 64];

fn macs(floors: &mut Floors) -> anyhow::Result<()> {
    floors.measure("cbc_mac", ["zak.cbc@1"], &|session, [key]| {
        black_box(session.encrypt(&Mechanism::Des3Cbc([0; 8]), key, &MESSAGE)?);
        Ok(())
    })?;
    let labels = ["zak.acquirer-a@1", "zak.acquirer-a@1.left"];
    floors.measure("retail_mac", labels, &retail_mac)?;
    let number = mechanism_type(CKM_DES3_CMAC);
    let cmac_tdes = Mechanism::VendorDefined(VendorDefinedMechanism::new::<()>(number, None));
    for (name, key, mechanism) in [
        ("cmac_tdes", "zak.acquirer-c@1", cmac_tdes),
        ("cmac_aes", "zak.acquirer-b@1", Mechanism::AesCMac),
        ("hmac", "zak.acquirer-d@1", Mechanism::Sha256Hmac),
    ] {
        floors.measure(name, [key], &|session, [key]| {
            black_box(session.sign(&mechanism, key, &MESSAGE)?);
            Ok(())
        })?;
    }
    Ok(())
}

fn retail_mac(session: &Session, [key, left]: [ObjectHandle; 2]) -> anyhow::Result<()> {
    let (chained, last) = MESSAGE.split_at(MESSAGE.len() - 8);
    let chain = session.encrypt(&Mechanism::Des3Cbc([0; 8]), left, chained)?;
    let block: Vec<u8> =
        last.iter().zip(&chain[chained.len() - 8..]).map(|(byte, state)| byte ^ state).collect();
    black_box(session.encrypt(&Mechanism::Des3Ecb, key, &block)?);
    Ok(())
}

/// CPU microseconds of one call, over as many calls as fit.
fn floor(seconds: f64, call: &mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    for _ in 0..100 {
        call()?;
    }
    let start = cpu_s();
    let mut calls = 0u32;
    while cpu_s() - start < seconds {
        for _ in 0..100 {
            call()?;
        }
        calls += 100;
    }
    Ok((cpu_s() - start) * 1e6 / f64::from(calls))
}

fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
