//! A terminal that holds an initial key of the demo's DUKPT base keys and counts its transactions.
//!
//! `aes` seals ISO 4 under `bdk.terminals` (AES-128 working keys), `tdes` ISO 0 under
//! `bdk.terminals-legacy`. A counter with more one-bits than the scheme uses is stepped over, as
//! a real terminal does.

use crate::demo_keys::DemoKeys;
use crate::soft::pin::{PinFormat, seal_pin};
use crate::soft::{SoftError, dukpt_aes, dukpt_tdes};

use super::PinSide;

/// A terminal. Two of one device number send the same serial numbers: give each test its own.
#[derive(Clone)]
pub struct Terminal {
    scheme: Scheme,
    counter: u32,
}

#[derive(Clone)]
enum Scheme {
    Aes { initial_key: Vec<u8>, ksn: dukpt_aes::Ksn },
    Tdes { initial_key: dukpt_tdes::Key, ksn: dukpt_tdes::Ksn },
}

/// A PIN block and the serial number that it was made under, both upper-case hex.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the parts of a translate request")]
pub struct SealedPin {
    pub key: &'static str,
    pub format: PinFormat,
    pub ksn: String,
    pub pin_block: String,
}

impl Terminal {
    /// AES DUKPT: the derivation id is the device number, the counter has 32 bits.
    ///
    /// # Panics
    /// Never: the demo key has the size of its algorithm.
    pub fn aes(device: u32) -> Self {
        let bdk = DemoKeys::load().value(AES_BDK);
        let ksn = joined(&[&BDK_ID, &device.to_be_bytes(), &[0; 4]]);
        let initial_key = dukpt_aes::initial_key(&bdk, &ksn);
        let initial_key = initial_key.unwrap_or_else(|refused| panic!("{AES_BDK}: {refused}"));
        Self { scheme: Scheme::Aes { initial_key, ksn }, counter: 0 }
    }

    /// TDES DUKPT: the right 19 bits of the device number, the counter has 21 bits.
    ///
    /// # Panics
    /// Never: the demo key has the size of its algorithm.
    pub fn tdes(device: u32) -> Self {
        let bdk = joined(&[&DemoKeys::load().value(TDES_BDK)]);
        let serial = u64::from(device & 0x7_FFFF) << 21;
        let ksn = joined(&[&[0xFF, 0xFF], &KEY_SET, &serial.to_be_bytes()[3..]]);
        let initial_key = dukpt_tdes::initial_key(&bdk, &ksn);
        let initial_key = initial_key.unwrap_or_else(|refused| panic!("{TDES_BDK}: {refused}"));
        Self { scheme: Scheme::Tdes { initial_key, ksn }, counter: 0 }
    }

    /// The same terminal after this counter: its next transaction has a higher one.
    #[must_use]
    pub fn after(self, counter: u32) -> Self {
        Self { counter, ..self }
    }

    /// The counter of the last transaction, 0 before the first.
    pub fn counter(&self) -> u32 {
        self.counter
    }

    /// The PIN block of the next transaction.
    ///
    /// # Errors
    /// A PIN or PAN that cannot be; `Counter` when the counters are used up.
    pub fn seal(&mut self, pin: &str, pan: &str) -> Result<SealedPin, SoftError> {
        let (ones_max, last) = match self.scheme {
            Scheme::Aes { .. } => (16, u32::MAX),
            Scheme::Tdes { .. } => (10, TDES_COUNTER),
        };
        let mut next = u64::from(self.counter) + 1;
        while next.count_ones() > ones_max {
            // The lowest one-bit added: no counter between has as few one-bits.
            next += next & next.wrapping_neg();
        }
        let next = u32::try_from(next).ok().filter(|next| *next <= last);
        let next = next.ok_or(SoftError::Counter)?;
        self.counter = next;
        self.seal_at(next, pin, pan)
    }

    /// The PIN block of any transaction: a repeated or an older one, when a test wants it.
    ///
    /// # Errors
    /// A PIN or PAN that cannot be; `Counter` when it has no or too many one-bits, or more than
    /// the 21 bits of TDES DUKPT.
    pub fn seal_at(&self, counter: u32, pin: &str, pan: &str) -> Result<SealedPin, SoftError> {
        let (key, format) = (self.bdk(), self.format());
        let (ksn, pin_key) = match &self.scheme {
            Scheme::Aes { initial_key, ksn } => {
                let ksn = joined(&[&ksn[..8], &counter.to_be_bytes()]);
                let key = dukpt_aes::transaction_key(initial_key, &ksn)?;
                let (usage, size) = (dukpt_aes::Usage::PinEncryption, dukpt_aes::KeyType::Aes128);
                (ksn.to_vec(), dukpt_aes::working_key(&key, &ksn, usage, size)?)
            }
            Scheme::Tdes { initial_key, ksn } => {
                if counter > TDES_COUNTER {
                    return Err(SoftError::Counter);
                }
                let [_, high, middle, low] = counter.to_be_bytes();
                let ksn = joined(&[&ksn[..7], &[ksn[7] | high, middle, low]]);
                let key = dukpt_tdes::transaction_key(initial_key, &ksn)?;
                (ksn.to_vec(), dukpt_tdes::pin_key(&key).to_vec())
            }
        };
        let pin_block = hex::encode_upper(seal_pin(format, &pin_key, pan, pin)?);
        Ok(SealedPin { key, format, ksn: hex::encode_upper(ksn), pin_block })
    }

    /// Label of its base key.
    pub fn bdk(&self) -> &'static str {
        match self.scheme {
            Scheme::Aes { .. } => AES_BDK,
            Scheme::Tdes { .. } => TDES_BDK,
        }
    }

    /// The format it uses.
    pub fn format(&self) -> PinFormat {
        match self.scheme {
            Scheme::Aes { .. } => PinFormat::Iso4,
            Scheme::Tdes { .. } => PinFormat::Iso0,
        }
    }
}

impl SealedPin {
    /// The `from` side of a translation of this block.
    pub fn side(&self) -> PinSide<'_> {
        let format = match self.format {
            PinFormat::Iso0 => "iso0",
            PinFormat::Iso1 => "iso1",
            PinFormat::Iso3 => "iso3",
            PinFormat::Iso4 => "iso4",
        };
        PinSide { key: self.key, format, ksn: Some(&self.ksn) }
    }
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Terminal({}, counter {})", self.bdk(), self.counter)
    }
}

fn joined<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let bytes = parts.concat();
    bytes.try_into().unwrap_or_else(|bytes: Vec<u8>| panic!("{} bytes for {N}", bytes.len()))
}

const AES_BDK: &str = "bdk.terminals";
const TDES_BDK: &str = "bdk.terminals-legacy";

/// Made up, as everything about these terminals: which BDK, and which key set of a legacy one.
const BDK_ID: [u8; 4] = *b"TG01";
const KEY_SET: [u8; 3] = [0x98, 0x76, 0x54];

/// The highest counter of TDES DUKPT.
const TDES_COUNTER: u32 = 0x1F_FFFF;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soft::pin::open_pin;

    const PAN: &str = "4761737909457820";

    #[test]
    fn a_block_opens_under_the_key_that_its_serial_number_names() {
        let aes = Terminal::aes(7).after(41).seal("1234", PAN).unwrap();
        let tdes = Terminal::tdes(7).after(41).seal("1234", PAN).unwrap();

        let (bdk, ksn) = (DemoKeys::load().value("bdk.terminals"), dukpt_aes::ksn(&aes.ksn));
        let (usage, size) = (dukpt_aes::Usage::PinEncryption, dukpt_aes::KeyType::Aes128);
        let key = dukpt_aes::working_key_of_bdk(&bdk, &ksn.unwrap(), usage, size).unwrap();
        let block = hex::decode(&aes.pin_block).unwrap();
        assert_eq!(open_pin(PinFormat::Iso4, &key, PAN, &block).as_deref(), Ok("1234"));
        assert_eq!(aes.ksn, "54473031000000070000002A");

        let bdk = DemoKeys::load().value("bdk.terminals-legacy").try_into().unwrap();
        let ksn = dukpt_tdes::ksn(&tdes.ksn).unwrap();
        let initial = dukpt_tdes::initial_key(&bdk, &ksn).unwrap();
        let key = dukpt_tdes::pin_key(&dukpt_tdes::transaction_key(&initial, &ksn).unwrap());
        let block = hex::decode(&tdes.pin_block).unwrap();
        assert_eq!(open_pin(PinFormat::Iso0, &key, PAN, &block).as_deref(), Ok("1234"));
        assert_eq!(tdes.ksn, "FFFF9876540000E0002A");
    }

    #[test]
    fn every_transaction_has_a_higher_counter_and_its_own_key() {
        for mut terminal in [Terminal::aes(1), Terminal::tdes(1)] {
            let first = terminal.seal("1234", PAN).unwrap();
            let second = terminal.seal("1234", PAN).unwrap();

            assert!(first.ksn < second.ksn && first.pin_block != second.pin_block, "{terminal:?}");
            assert_eq!(terminal.counter(), 2);
            let again = terminal.seal_at(1, "1234", PAN).unwrap();
            assert_eq!(again.ksn, first.ksn, "{terminal:?}");
        }
    }

    #[test]
    fn counters_with_too_many_one_bits_are_stepped_over() {
        let next = |terminal: Terminal, counter| {
            let mut terminal = terminal.after(counter);
            terminal.seal("1234", PAN).map(|_| terminal.counter())
        };

        assert_eq!(next(Terminal::tdes(1), 0x7FE), Ok(0x800));
        assert_eq!(next(Terminal::tdes(1), 0x1F_F7FF), Ok(0x1F_F800));
        assert_eq!(next(Terminal::tdes(1), 0x1F_F800), Err(SoftError::Counter));
        assert_eq!(next(Terminal::aes(1), 0x1_FFFE), Ok(0x2_0000));
        assert_eq!(next(Terminal::aes(1), 0xFFFF_0000), Err(SoftError::Counter));
        assert_eq!(Terminal::tdes(1).seal_at(0x20_0000, "1234", PAN), Err(SoftError::Counter));
        assert_eq!(Terminal::aes(1).seal_at(0, "1234", PAN), Err(SoftError::Counter));
    }

    #[test]
    fn a_failed_pin_costs_a_counter_and_says_why() {
        let mut terminal = Terminal::aes(1);

        assert_eq!(terminal.seal("123", PAN), Err(SoftError::Length));
        assert_eq!(terminal.counter(), 1);
    }
}
