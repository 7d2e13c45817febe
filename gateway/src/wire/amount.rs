//! Amounts: positive decimals with at most the currency's minor digits (ISO 4217).

use serde::{Deserialize, Serialize};

/// An amount that is valid for its currency. Shown as it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// `127000.00`.
    pub value: String,
    /// `IDR`.
    pub currency: String,
}

/// Digits in all, before and after the point.
const DIGITS_MAX: usize = 15;

impl Amount {
    /// # Errors
    /// The rule that is broken, without the text.
    pub fn parse(value: &str, currency: &str) -> Result<Self, &'static str> {
        let minor = minor_digits(currency).ok_or("currency is no ISO 4217 code in use")?;
        let (whole, fraction) = match value.split_once('.') {
            Some((_, "")) => return Err("value ends with a point"),
            Some((whole, fraction)) => (whole, fraction),
            None => (value, ""),
        };
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) {
            return Err("value is a decimal such as 127000.00");
        }
        if whole.len() > 1 && whole.starts_with('0') {
            return Err("value starts with a zero");
        }
        if fraction.len() > minor {
            return Err("value has more decimals than the currency");
        }
        if whole.len() + fraction.len() > DIGITS_MAX {
            return Err("value has more than 15 digits");
        }
        if value.bytes().all(|byte| matches!(byte, b'0' | b'.')) {
            return Err("value is not positive");
        }
        Ok(Self { value: value.to_owned(), currency: currency.to_owned() })
    }
}

/// Minor digits of the currencies of ISO 4217 (list one). Codes that are no money are absent.
fn minor_digits(currency: &str) -> Option<usize> {
    const NONE: &str = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF";
    const THREE: &str = "BHD IQD JOD KWD LYD OMR TND";
    const FOUR: &str = "CLF UYW";
    const TWO: &str = "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN \
        BWP BYN BZD CAD CDF CHF CNY COP CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP \
        GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK \
        LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK \
        NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD \
        SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG \
        YER ZAR ZMW ZWG";
    let holds = |list: &str| list.split_whitespace().any(|code| code == currency);
    [(TWO, 2), (NONE, 0), (THREE, 3), (FOUR, 4)]
        .into_iter()
        .find_map(|(list, digits)| holds(list).then_some(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_fit_their_currency() {
        for (value, currency) in [
            ("127000.00", "IDR"),
            ("127000", "IDR"),
            ("0.01", "USD"),
            ("1", "JPY"),
            ("0.001", "KWD"),
            ("9999999999999.99", "EUR"),
        ] {
            assert!(Amount::parse(value, currency).is_ok(), "{value} {currency}");
        }
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for (value, currency) in [
            ("", "IDR"),
            ("0", "IDR"),
            ("0.00", "IDR"),
            ("-1", "IDR"),
            ("+1", "IDR"),
            ("1e3", "IDR"),
            ("1.", "IDR"),
            (".5", "IDR"),
            ("01", "IDR"),
            ("1.001", "USD"),
            ("1.0", "JPY"),
            ("1,00", "USD"),
            (" 1", "USD"),
            ("10000000000000.00", "EUR"),
            ("1", "usd"),
            ("1", "XXX"),
            ("1", "ZZZ"),
        ] {
            assert!(Amount::parse(value, currency).is_err(), "{value} {currency}");
        }
    }
}
