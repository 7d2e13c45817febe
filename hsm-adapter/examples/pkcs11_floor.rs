//! The PKCS#11 floor of `make bench`: the same C_ calls as one operation makes, in a loop on one
//! thread, on the same token objects. Prints CPU microseconds (user + system) per operation as
//! JSON. `SOFTHSM2_CONF` names the token.

use std::path::PathBuf;

use clap::Parser;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use rustix::time::{ClockId, clock_gettime};

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    module: PathBuf,
    #[arg(long)]
    token_label: String,
    #[arg(long)]
    pin_file: PathBuf,
    /// One operation instead of all.
    #[arg(long)]
    only: Option<String>,
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
    let find = |label: &str| -> anyhow::Result<ObjectHandle> {
        let found = session.find_objects(&[Attribute::Label(label.into())])?;
        found.first().copied().ok_or_else(|| anyhow::anyhow!("no object {label}"))
    };
    let message = [0x5A_u8; 64];
    let mut figures = Vec::new();
    let mut measure = |name: &str, call: &mut dyn FnMut() -> anyhow::Result<()>| {
        if arguments.only.as_ref().is_none_or(|only| only == name) {
            figures.push(format!("\"{name}\":{:.2}", floor(arguments.seconds, call)?));
        }
        anyhow::Ok(())
    };

    let (zpk_in, zpk_out) = (find("zpk.acquirer-a@1")?, find("zpk.billing@1")?);
    measure("translate", &mut || translate(&session, zpk_in, zpk_out))?;
    let (zpk_in, zpk_out) = (find("zpk.acquirer-b@1")?, find("zpk.billing-aes@1")?);
    measure("translate_iso4", &mut || translate_iso4(&session, zpk_in, zpk_out))?;
    let (mac, left) = (find("zak.acquirer-a@1")?, find("zak.acquirer-a@1.left")?);
    measure("retail_mac", &mut || retail_mac(&session, mac, left, &message))?;
    let mac = find("zak.acquirer-b@1")?;
    measure("cmac_aes", &mut || sign(&session, &Mechanism::AesCMac, mac, &message))?;
    let mac = find("zak.acquirer-d@1")?;
    measure("hmac", &mut || sign(&session, &Mechanism::Sha256Hmac, mac, &message))?;
    println!("{{{}}}", figures.join(","));
    Ok(())
}

fn translate_iso4(session: &Session, from: ObjectHandle, to: ObjectHandle) -> anyhow::Result<()> {
    let middle = session.decrypt(&Mechanism::AesEcb, from, &[0x46; 16])?;
    let clear = session.decrypt(&Mechanism::AesEcb, from, &middle)?;
    let middle = session.encrypt(&Mechanism::AesEcb, to, &clear)?;
    std::hint::black_box(session.encrypt(&Mechanism::AesEcb, to, &middle)?);
    Ok(())
}

fn sign(
    session: &Session,
    mechanism: &Mechanism<'_>,
    key: ObjectHandle,
    message: &[u8],
) -> anyhow::Result<()> {
    std::hint::black_box(session.sign(mechanism, key, message)?);
    Ok(())
}

fn translate(session: &Session, from: ObjectHandle, to: ObjectHandle) -> anyhow::Result<()> {
    let clear = session.decrypt(&Mechanism::Des3Ecb, from, &[0x46; 8])?;
    std::hint::black_box(session.encrypt(&Mechanism::Des3Ecb, to, &clear)?);
    Ok(())
}

fn retail_mac(
    session: &Session,
    key: ObjectHandle,
    left: ObjectHandle,
    message: &[u8],
) -> anyhow::Result<()> {
    let (chained, last) = message.split_at(message.len() - 8);
    let chain = session.encrypt(&Mechanism::Des3Cbc([0; 8]), left, chained)?;
    let block: Vec<u8> =
        last.iter().zip(&chain[chained.len() - 8..]).map(|(byte, state)| byte ^ state).collect();
    std::hint::black_box(session.encrypt(&Mechanism::Des3Ecb, key, &block)?);
    Ok(())
}

/// CPU microseconds of one call, over as many calls as fit.
fn floor(seconds: f64, call: &mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    for _ in 0..1000 {
        call()?;
    }
    let start = cpu_s();
    let mut calls = 0u32;
    while cpu_s() - start < seconds {
        for _ in 0..1000 {
            call()?;
        }
        calls += 1000;
    }
    Ok((cpu_s() - start) * 1e6 / f64::from(calls))
}

fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
