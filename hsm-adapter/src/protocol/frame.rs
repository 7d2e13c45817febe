//! Frames: a length, then a postcard body. What held one is wiped.

use postcard::ser_flavors::Flavor;
use serde::{Serialize, de::DeserializeOwned};
use zeroize::{Zeroize, Zeroizing};

use super::FRAME_BYTES_MAX;

/// Appends one frame.
///
/// # Errors
/// When the body is over [`FRAME_BYTES_MAX`]; then nothing was appended.
pub fn append_frame<T: Serialize>(buffer: &mut Vec<u8>, message: &T) -> Result<(), FrameError> {
    let start = buffer.len();
    append_wiping(buffer, &[0; 4]);
    let written = postcard::serialize_with_flavor(message, Growing(buffer));
    let body = buffer.len() - start - 4;
    let refused = match written {
        Ok(()) if body <= FRAME_BYTES_MAX => None,
        Ok(()) => Some(FrameError::TooLong),
        Err(_) => Some(FrameError::Malformed),
    };
    if let Some(error) = refused {
        cut(buffer, start);
        return Err(error);
    }
    buffer[start..start + 4].copy_from_slice(&(body as u32).to_le_bytes());
    Ok(())
}

/// Where postcard writes: behind what the buffer holds already.
struct Growing<'b>(&'b mut Vec<u8>);

impl Flavor for Growing<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        append_wiping(self.0, &[byte]);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        append_wiping(self.0, bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Appends; a buffer that is too small is left wiped when a larger one takes its place.
fn append_wiping(buffer: &mut Vec<u8>, bytes: &[u8]) {
    let wanted = buffer.len() + bytes.len();
    if wanted > buffer.capacity() {
        let mut larger =
            Vec::with_capacity(wanted.max(2 * buffer.capacity()).max(BUFFER_BYTES_MIN));
        larger.extend_from_slice(buffer);
        buffer.zeroize();
        *buffer = larger;
    }
    buffer.extend_from_slice(bytes);
}

/// Room for a few orders without a message.
const BUFFER_BYTES_MIN: usize = 4096;

/// Takes off what stands behind `length`, and wipes it.
fn cut(buffer: &mut Vec<u8>, length: usize) {
    buffer[length..].zeroize();
    buffer.truncate(length);
}

/// Empties a buffer that held an order or an answer. Only what was in use is overwritten: a buffer
/// that once held a long message would cost its whole length each time, and the rest was wiped
/// before.
pub(crate) fn wipe(buffer: &mut Vec<u8>) {
    buffer.as_mut_slice().zeroize();
    buffer.clear();
}

/// Cuts frames out of a stream of bytes. What it has held is zeroized.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Zeroizing<Vec<u8>>,
    start: usize,
}

impl FrameBuffer {
    /// Adds what the socket gave.
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.start == self.bytes.len() {
            wipe(&mut self.bytes);
            self.start = 0;
        } else if self.start > FRAME_BYTES_MAX {
            let left = self.bytes.len() - self.start;
            self.bytes.copy_within(self.start.., 0);
            cut(&mut self.bytes, left);
            self.start = 0;
        }
        append_wiping(&mut self.bytes, bytes);
    }

    /// Whether a whole frame waits.
    #[must_use]
    pub fn holds_frame(&self) -> bool {
        let waiting = &self.bytes[self.start..];
        waiting
            .first_chunk::<4>()
            .is_some_and(|length| waiting.len() - 4 >= u32::from_le_bytes(*length) as usize)
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// A frame over the bound or not of this protocol: the conversation is over.
    pub fn next_frame<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let waiting = &self.bytes[self.start..];
        let Some(length) = waiting.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong);
        }
        let Some(body) = waiting.get(4..4 + length) else { return Ok(None) };
        let (message, rest) = postcard::take_from_bytes(body).map_err(|_| FrameError::Malformed)?;
        if !rest.is_empty() {
            return Err(FrameError::Malformed);
        }
        self.start += 4 + length;
        Ok(Some(message))
    }
}

/// Why a frame is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Over [`FRAME_BYTES_MAX`].
    #[error("a frame is longer than {FRAME_BYTES_MAX} bytes")]
    TooLong,
    /// Not this protocol.
    #[error("a frame is not of this protocol")]
    Malformed,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{Answer, Message, Order, Request};
    use crate::vocabulary::KeyLabel;

    fn order(message: Vec<u8>) -> Request {
        let key = KeyLabel::parse("zak.a").unwrap().into();
        let message = Message(message);
        Request {
            id: 7,
            deadline_ns: 9,
            order: Order::GenerateMac { key, ksn: None, message, length: None },
        }
    }

    proptest! {
        /// However the socket cuts the bytes, the same orders come out.
        #[test]
        fn frames_survive_any_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8),
            cut in 1usize..50,
        ) {
            let mut bytes = Vec::new();
            for message in &messages {
                append_frame(&mut bytes, &order(message.clone())).unwrap();
            }
            let mut buffer = FrameBuffer::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(cut) {
                buffer.extend(piece);
                while let Some(request) = buffer.next_frame::<Request>().unwrap() {
                    let Order::GenerateMac { message, .. } = request.order else { panic!() };
                    seen.push(message.0.clone());
                }
            }
            prop_assert_eq!(seen, messages);
        }

        /// Garbage is an error or a message, never a panic.
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = FrameBuffer::default();
            buffer.extend(&bytes);
            while let Ok(Some(_)) = buffer.next_frame::<Request>() {}
        }
    }

    #[test]
    fn a_frame_over_the_bound_is_refused_on_both_sides() {
        let mut bytes = Vec::new();
        let long = order(vec![0; FRAME_BYTES_MAX + 1]);
        assert_eq!(append_frame(&mut bytes, &long), Err(FrameError::TooLong));
        assert!(bytes.is_empty());
        let mut buffer = FrameBuffer::default();
        buffer.extend(&u32::MAX.to_le_bytes());
        assert_eq!(buffer.next_frame::<Request>().unwrap_err(), FrameError::TooLong);
    }

    #[test]
    fn an_order_that_is_refused_leaves_those_before_it_and_nothing_of_itself() {
        let mut bytes = Vec::new();
        append_frame(&mut bytes, &order(vec![1; 10])).unwrap();
        let before = bytes.clone();

        append_frame(&mut bytes, &order(vec![7; FRAME_BYTES_MAX + 1])).unwrap_err();

        assert_eq!(bytes, before);
        bytes.resize(FRAME_BYTES_MAX, 0);
        assert!(!bytes[before.len()..].contains(&7));
    }

    #[test]
    fn random_bytes_are_not_printed() {
        let printed = format!("{:?}", Answer::Random(Message(vec![171; 4])));

        assert_eq!(printed, "Random(Message(4 bytes))");
    }
}
