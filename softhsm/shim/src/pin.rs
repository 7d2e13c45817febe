//! PIN blocks as a device decodes them: ISO 9564-1 formats 0, 1, 3 and 4.
//!
//! Shares nothing with the product, whose work it checks.

use zeroize::Zeroizing;

/// A clear PIN, one digit a byte.
pub(crate) type Pin = Zeroizing<Vec<u8>>;

/// Block bytes of a format; `None` for a number that is none of the four.
pub(crate) fn block_bytes(format: u8) -> Option<usize> {
    match format {
        0 | 1 | 3 => Some(8),
        4 => Some(16),
        _ => None,
    }
}

/// What a PAN lends to a block: eight bytes of formats 0 and 3, none of format 1, sixteen of
/// format 4. `pan` is digits, as numbers.
pub(crate) fn pan_field(format: u8, pan: &[u8]) -> Vec<u8> {
    match format {
        0 | 3 => {
            let body = &pan[..pan.len().saturating_sub(1)];
            let body = &body[body.len().saturating_sub(12)..];
            let mut digits = vec![0; 16 - body.len()];
            digits.extend_from_slice(body);
            packed(&digits)
        }
        4 => {
            let mut digits = vec![pan.len().saturating_sub(12) as u8];
            digits.resize(1 + 12_usize.saturating_sub(pan.len()), 0);
            digits.extend_from_slice(pan);
            digits.resize(32, 0);
            packed(&digits)
        }
        _ => vec![0; 8],
    }
}

/// The PIN of a clear block, from which the PAN is taken away already. `None` when it is no block.
pub(crate) fn decode(format: u8, field: &[u8]) -> Option<Pin> {
    let digits = Zeroizing::new(unpacked(field));
    let length = usize::from(digits[1]);
    if digits[0] != format || !(4..=12).contains(&length) {
        return None;
    }
    let (pin, fill) = digits[2..16].split_at(length);
    let filled = fill.iter().all(|digit| match format {
        0 => *digit == 0xF,
        3 => *digit >= 0xA,
        4 => *digit == 0xA,
        _ => true,
    });
    (filled && pin.iter().all(|digit| *digit <= 9)).then(|| Zeroizing::new(pin.to_vec()))
}

/// The clear block before the PAN comes to it; `random` is sixteen bytes.
pub(crate) fn encode(format: u8, pin: &[u8], random: &[u8]) -> Zeroizing<Vec<u8>> {
    let fill = Zeroizing::new(unpacked(random));
    let mut digits = Zeroizing::new(vec![format, pin.len() as u8]);
    digits.extend_from_slice(pin);
    for at in digits.len()..16 {
        digits.push(match format {
            0 => 0xF,
            3 => 0xA + fill[at] % 6,
            4 => 0xA,
            _ => fill[at],
        });
    }
    if format == 4 {
        digits.extend_from_slice(&fill[16..32]);
    }
    Zeroizing::new(packed(&digits))
}

fn packed(digits: &[u8]) -> Vec<u8> {
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).collect()
}
