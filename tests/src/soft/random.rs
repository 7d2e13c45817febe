//! Random cases from a seed that a failing test prints: the same seed gives the same cases.

use std::fmt;

use super::pin::PinFormat;
use super::{dukpt_aes, dukpt_tdes, pan};

/// A source of cases. Not for secrets: SplitMix64, 64 bits of state.
#[derive(Debug, Clone)]
pub struct Random {
    seed: u64,
    state: u64,
}

/// A PIN, a card, and what a block of them needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinCase {
    /// Which block.
    pub format: PinFormat,
    /// 4 to 12 digits.
    pub pin: String,
    /// 8 to 19 digits, right by Luhn.
    pub pan: String,
    /// What [`super::pin::clear_block`] takes as filler.
    pub fill: String,
    /// 16 bytes of TDES, or 16, 24 or 32 of AES for format 4.
    pub key: Vec<u8>,
}

impl Random {
    /// The cases of this seed.
    pub fn of(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    /// Cases that nobody saw before.
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    pub fn fresh() -> Self {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).unwrap_or_else(|error| panic!("no randomness: {error}"));
        Self::of(u64::from_be_bytes(seed))
    }

    /// 64 random bits. Steele, Lea and Flood, "Fast splittable pseudorandom number generators".
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number from `from` to `to`, both included.
    ///
    /// # Panics
    /// When `to` is below `from`.
    pub fn between(&mut self, from: usize, to: usize) -> usize {
        let many = u64::try_from(to - from).unwrap_or(u64::MAX).saturating_add(1);
        from + usize::try_from(self.bits() % many).unwrap_or(0)
    }

    /// One of these.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.between(0, of.len() - 1)]
    }

    /// This many bytes.
    pub fn bytes(&mut self, many: usize) -> Vec<u8> {
        (0..many).map(|_| self.bits().to_be_bytes()[0]).collect()
    }

    /// A message of up to this many bytes, empty and whole blocks among them.
    pub fn message(&mut self, bytes_max: usize) -> Vec<u8> {
        let many = self.between(0, bytes_max);
        self.bytes(many)
    }

    /// This many decimal digits.
    pub fn digits(&mut self, many: usize) -> String {
        (0..many).map(|_| char::from(b'0' + self.bits().to_be_bytes()[0] % 10)).collect()
    }

    /// A PIN of 4 to 12 digits.
    pub fn pin(&mut self) -> String {
        let many = self.between(4, 12);
        self.digits(many)
    }

    /// A PAN of 8 to 19 digits with its check digit.
    pub fn pan(&mut self) -> String {
        let many = self.between(7, 18);
        let body = self.digits(many);
        let check = pan::check_digit(&body).unwrap_or('0');
        format!("{body}{check}")
    }

    /// One of the four formats.
    pub fn format(&mut self) -> PinFormat {
        self.pick(&[PinFormat::Iso0, PinFormat::Iso1, PinFormat::Iso3, PinFormat::Iso4])
    }

    /// A double length TDES key with odd parity, so that every token takes it.
    pub fn tdes_key(&mut self) -> [u8; 16] {
        std::array::from_fn(|_| {
            let byte = self.bits().to_be_bytes()[0];
            byte ^ u8::from(byte.count_ones().is_multiple_of(2))
        })
    }

    /// An AES key of 16, 24 or 32 bytes.
    pub fn aes_key(&mut self) -> Vec<u8> {
        let many = self.pick(&[16, 24, 32]);
        self.bytes(many)
    }

    /// A key of the cipher that the format is used with.
    pub fn key_for(&mut self, format: PinFormat) -> Vec<u8> {
        match format {
            PinFormat::Iso0 | PinFormat::Iso1 | PinFormat::Iso3 => self.tdes_key().to_vec(),
            PinFormat::Iso4 => self.aes_key(),
        }
    }

    /// Filler of a format for a PIN of this many digits.
    pub fn fill(&mut self, format: PinFormat, pin_digits: usize) -> String {
        format.fill_from(self.bits().to_be_bytes(), pin_digits)
    }

    /// All that a PIN block of this format needs.
    pub fn pin_case(&mut self, format: PinFormat) -> PinCase {
        let (pin, pan) = (self.pin(), self.pan());
        let fill = self.fill(format, pin.len());
        PinCase { format, pin, pan, fill, key: self.key_for(format) }
    }

    /// A TDES DUKPT serial number whose counter has 1 to 10 one-bits.
    pub fn tdes_ksn(&mut self) -> dukpt_tdes::Ksn {
        let counter = self.counter(21, 10);
        let serial = (self.bits() & !0x1F_FFFF | u64::from(counter)).to_be_bytes();
        std::array::from_fn(|place| if place < 2 { 0xFF } else { serial[place - 2] })
    }

    /// An AES DUKPT serial number whose counter has 1 to 16 one-bits.
    pub fn aes_ksn(&mut self) -> dukpt_aes::Ksn {
        let (device, counter) = (self.bits().to_be_bytes(), self.counter(32, 16).to_be_bytes());
        std::array::from_fn(|place| if place < 8 { device[place] } else { counter[place - 8] })
    }

    fn counter(&mut self, bits: usize, ones_max: usize) -> u32 {
        let ones = self.between(1, ones_max);
        let mut counter = 0_u32;
        for _ in 0..ones {
            counter |= 1 << self.between(0, bits - 1);
        }
        counter
    }
}

/// The seed, as a test that failed should say it.
impl fmt::Display for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {:#018X}", self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soft::pin::{clear_block, encipher, open_pin};

    #[test]
    fn a_seed_gives_the_same_cases_and_another_gives_others() {
        let cases = |seed| {
            let mut random = Random::of(seed);
            (0..8).map(|_| random.pin_case(PinFormat::Iso1)).collect::<Vec<_>>()
        };

        assert_eq!(cases(7), cases(7));
        assert_ne!(cases(7), cases(8));
        assert_eq!(Random::of(7).to_string(), "seed 0x0000000000000007");
        assert_ne!(Random::fresh().to_string(), Random::fresh().to_string());
    }

    /// First numbers of the reference implementation for seed 1234567.
    #[test]
    fn the_bits_are_those_of_splitmix64() {
        let mut random = Random::of(1_234_567);

        assert_eq!(random.bits(), 6_457_827_717_110_365_317);
        assert_eq!(random.bits(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn every_case_can_be_sealed_and_opened_and_all_lengths_occur() {
        let mut random = Random::fresh();
        let (mut pins, mut pans) = ([false; 13], [false; 20]);

        for _ in 0..2_000 {
            let format = random.format();
            let case = random.pin_case(format);
            let PinCase { pin, pan, fill, key, .. } = &case;

            let clear = clear_block(format, pin, pan, fill);
            let block = encipher(format, key, pan, &clear.unwrap()).unwrap();

            let opened = open_pin(format, key, pan, &block);
            assert_eq!(opened.as_deref(), Ok(pin.as_str()), "{random}: {case:?}");
            assert!(pan::luhn_valid(pan), "{random}: {case:?}");
            pins[pin.len()] = true;
            pans[pan.len()] = true;
        }
        assert!(pins[4..].iter().all(|seen| *seen), "{random}: {pins:?}");
        assert!(pans[8..].iter().all(|seen| *seen), "{random}: {pans:?}");
    }

    #[test]
    fn every_serial_number_has_a_transaction_key() {
        let mut random = Random::fresh();

        for _ in 0..500 {
            let (tdes, aes) = (random.tdes_ksn(), random.aes_ksn());

            assert!(dukpt_tdes::transaction_key(&[7; 16], &tdes).is_ok(), "{random}: {tdes:?}");
            assert!(dukpt_aes::transaction_key(&[7; 16], &aes).is_ok(), "{random}: {aes:?}");
        }
    }

    #[test]
    fn tdes_keys_have_odd_parity() {
        let mut random = Random::fresh();

        for _ in 0..100 {
            assert!(random.tdes_key().iter().all(|byte| byte.count_ones() % 2 == 1), "{random}");
        }
    }
}
