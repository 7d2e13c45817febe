//! A JSON object of a request, read strictly: bounded depth, no duplicate name, no unknown field.
//!
//! Errors name the field and never its value, which serde's own messages would repeat: a PAN in
//! the wrong place must not come back in an answer or stand in a log.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, Deserialize, DeserializeOwned, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::problem::Problem;

/// The fields that were not taken yet.
#[derive(Debug)]
pub(crate) struct Object {
    path: String,
    fields: Vec<(String, Value)>,
}

/// What a field may hold here: no request of ours has fractions or nulls.
enum Value {
    Text(Secret),
    Number(u64),
    Flag(bool),
    List(Vec<Value>),
    Object(Vec<(String, Value)>),
}

/// A text that may be a PAN or a PIN block.
#[derive(Zeroize, ZeroizeOnDrop)]
struct Secret(String);

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Value(redacted)")
    }
}

/// Objects and lists within objects.
const DEPTH_MAX: u8 = 4;
/// Fields of one object, and values of one list.
const FIELDS_MAX: usize = 32;

impl Object {
    /// The whole body.
    ///
    /// # Errors
    /// `malformed-request`.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let root: Root = serde_json::from_slice(body)
            .map_err(|_| Problem::malformed("the body is not one JSON object of this form"))?;
        Ok(Self { path: String::new(), fields: root.0 })
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// `malformed-request`, naming the field.
    pub(crate) fn text(&mut self, name: &'static str) -> Result<String, Problem> {
        self.optional_text(name)?.ok_or_else(|| self.missing(name))
    }

    /// A text that may be absent.
    ///
    /// # Errors
    /// `malformed-request` when it is something else.
    pub(crate) fn optional_text(&mut self, name: &'static str) -> Result<Option<String>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Text(mut text)) => Ok(Some(std::mem::take(&mut text.0))),
            Some(Value::Number(_) | Value::Flag(_) | Value::List(_) | Value::Object(_)) => {
                Err(self.wrong(name, "must be a string"))
            }
        }
    }

    /// A text parsed to its type.
    ///
    /// # Errors
    /// `malformed-request`, naming the field and the parser's rule.
    pub(crate) fn parsed<T, E: fmt::Display>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, Problem> {
        let text = zeroize::Zeroizing::new(self.text(name)?);
        parse(&text).map_err(|rule| self.wrong(name, &rule.to_string()))
    }

    /// Hex of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// `malformed-request`, naming the field.
    pub(crate) fn hex(&mut self, name: &'static str, bytes_max: usize) -> Result<Vec<u8>, Problem> {
        let text = zeroize::Zeroizing::new(self.text(name)?);
        if text.len() > bytes_max * 2 {
            return Err(self.wrong(name, &format!("has more than {bytes_max} bytes")));
        }
        hex::decode(text.as_bytes()).map_err(|_| self.wrong(name, "must be hex"))
    }

    /// A whole number that may be absent.
    ///
    /// # Errors
    /// `malformed-request` when it is something else.
    pub(crate) fn optional_number(&mut self, name: &'static str) -> Result<Option<u64>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(Some(number)),
            Some(Value::Text(_) | Value::Flag(_) | Value::List(_) | Value::Object(_)) => {
                Err(self.wrong(name, "must be a whole number"))
            }
        }
    }

    /// A whole number that must be there.
    ///
    /// # Errors
    /// `malformed-request`, naming the field.
    pub(crate) fn number(&mut self, name: &'static str) -> Result<u64, Problem> {
        self.optional_number(name)?.ok_or_else(|| self.missing(name))
    }

    /// A whole number of a bounded type that may be absent.
    ///
    /// # Errors
    /// `malformed-request` when it is something else, or out of bounds.
    pub(crate) fn optional_bounded<T: TryFrom<u64>>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, Problem> {
        let number = self.optional_number(name)?;
        number.map(|number| self.bounded(name, number)).transpose()
    }

    /// A word of a closed list, as serde writes it, that may be absent.
    ///
    /// # Errors
    /// `malformed-request`, naming the field.
    pub(crate) fn optional_word<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, Problem> {
        let text = self.optional_text(name)?;
        text.map(|text| self.known(name, &text)).transpose()
    }

    /// A word of a closed list that must be there.
    ///
    /// # Errors
    /// `malformed-request`, naming the field.
    pub(crate) fn word<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<T, Problem> {
        self.optional_word(name)?.ok_or_else(|| self.missing(name))
    }

    /// Words of a closed list; none when absent.
    ///
    /// # Errors
    /// `malformed-request`, naming the field.
    pub(crate) fn words<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
    ) -> Result<Vec<T>, Problem> {
        let values = self.list(name)?;
        let word = |value: &Value| match value {
            Value::Text(text) => self.known(name, &text.0),
            Value::Number(_) | Value::Flag(_) | Value::List(_) | Value::Object(_) => {
                Err(self.wrong(name, "must be a list of strings"))
            }
        };
        values.iter().map(word).collect()
    }

    /// Whole numbers of a bounded type; none when absent.
    ///
    /// # Errors
    /// `malformed-request`, naming the field.
    pub(crate) fn numbers<T: TryFrom<u64>>(
        &mut self,
        name: &'static str,
    ) -> Result<Vec<T>, Problem> {
        let values = self.list(name)?;
        let number = |value: &Value| match value {
            Value::Number(number) => self.bounded(name, *number),
            Value::Text(_) | Value::Flag(_) | Value::List(_) | Value::Object(_) => {
                Err(self.wrong(name, "must be a list of whole numbers"))
            }
        };
        values.iter().map(number).collect()
    }

    /// Whether the field is there and true.
    ///
    /// # Errors
    /// `malformed-request` when it is something else.
    pub(crate) fn flag(&mut self, name: &'static str) -> Result<bool, Problem> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Flag(flag)) => Ok(flag),
            Some(Value::Text(_) | Value::Number(_) | Value::List(_) | Value::Object(_)) => {
                Err(self.wrong(name, "must be true or false"))
            }
        }
    }

    /// An object within that must be there.
    ///
    /// # Errors
    /// `malformed-request`, naming the field.
    pub(crate) fn object(&mut self, name: &'static str) -> Result<Self, Problem> {
        self.optional_object(name)?.ok_or_else(|| self.missing(name))
    }

    /// An object within that may be absent.
    ///
    /// # Errors
    /// `malformed-request` when it is something else.
    pub(crate) fn optional_object(&mut self, name: &'static str) -> Result<Option<Self>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => {
                Ok(Some(Self { path: format!("{}{name}.", self.path), fields }))
            }
            Some(Value::Text(_) | Value::Number(_) | Value::Flag(_) | Value::List(_)) => {
                Err(self.wrong(name, "must be an object"))
            }
        }
    }

    /// Everything was taken.
    ///
    /// # Errors
    /// `malformed-request`, naming the first field that this request does not have.
    pub(crate) fn end(self) -> Result<(), Problem> {
        let Some((name, _)) = self.fields.first() else { return Ok(()) };
        // The name is the caller's own text: shown only when it can be nothing but a name.
        let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'_');
        if name.len() <= 32 && name.bytes().all(plain) {
            Err(Problem::malformed(format!("unknown field {}{name}", self.path)))
        } else {
            Err(Problem::malformed("unknown field"))
        }
    }

    /// A refusal of this field in these words.
    #[must_use]
    pub(crate) fn wrong(&self, name: &str, rule: &str) -> Problem {
        Problem::malformed(format!("{}{name}: {rule}", self.path))
    }

    fn list(&mut self, name: &'static str) -> Result<Vec<Value>, Problem> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::List(values)) => Ok(values),
            Some(Value::Text(_) | Value::Number(_) | Value::Flag(_) | Value::Object(_)) => {
                Err(self.wrong(name, "must be a list"))
            }
        }
    }

    fn known<T: DeserializeOwned>(&self, name: &str, text: &str) -> Result<T, Problem> {
        let word: StrDeserializer<'_, de::value::Error> = text.into_deserializer();
        T::deserialize(word).map_err(|_| self.wrong(name, "is no word that is known here"))
    }

    fn bounded<T: TryFrom<u64>>(&self, name: &str, number: u64) -> Result<T, Problem> {
        T::try_from(number).map_err(|_| self.wrong(name, "is too large"))
    }

    fn missing(&self, name: &str) -> Problem {
        Problem::malformed(format!("missing field {}{name}", self.path))
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.fields.iter().position(|(field, _)| field == name)?;
        Some(self.fields.swap_remove(at).1)
    }
}

struct Root(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Root {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields { depth: DEPTH_MAX }).map(Self)
    }
}

struct Fields {
    depth: u8,
}

impl<'de> Visitor<'de> for Fields {
    type Value = Vec<(String, Value)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields: Vec<(String, Value)> = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if fields.len() == FIELDS_MAX || fields.iter().any(|(other, _)| *other == name) {
                return Err(de::Error::custom("a name stands twice, or too many"));
            }
            let value = map.next_value_seed(Content { depth: self.depth })?;
            fields.push((name, value));
        }
        Ok(fields)
    }
}

struct Content {
    depth: u8,
}

impl<'de> de::DeserializeSeed<'de> for Content {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Content {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a whole number, true or false, a list or an object")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(Secret(text.to_owned())))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number))
    }

    fn visit_bool<E: de::Error>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Flag(flag))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| de::Error::custom("too deep"))?;
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Content { depth })? {
            if values.len() == FIELDS_MAX {
                return Err(de::Error::custom("too many"));
            }
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| de::Error::custom("too deep"))?;
        Fields { depth }.visit_map(map).map(Value::Object)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn detail(problem: &Problem) -> String {
        problem.detail().unwrap_or_default().to_owned()
    }

    #[test]
    fn fields_come_out_by_name() {
        let body = br#"{"a":"x","n":7,"o":{"b":"0aFF"}}"#;
        let mut object = Object::parse(body).unwrap();

        let mut inner = object.object("o").unwrap();

        assert_eq!(inner.hex("b", 2).unwrap(), [0x0A, 0xFF]);
        assert_eq!(object.text("a").unwrap(), "x");
        assert_eq!(object.optional_number("n").unwrap(), Some(7));
        assert!(inner.end().is_ok() && object.end().is_ok());
    }

    /// The field is named, the value is not.
    #[test]
    fn refusals_name_the_field_and_never_the_value() {
        let body = br#"{"pan":4111111111111111,"o":{"4111111111111111":"x","block":"4111zz"}}"#;
        let mut object = Object::parse(body).unwrap();
        let mut inner = object.object("o").unwrap();

        let refusals = [
            detail(&object.text("pan").unwrap_err()),
            detail(&object.text("pin").unwrap_err()),
            detail(&inner.hex("block", 99).unwrap_err()),
            detail(&inner.end().unwrap_err()),
        ];

        let named = ["pan: must be a string", "missing field pin", "o.block: must be hex"];
        assert_eq!(refusals[..3], named);
        assert!(refusals.iter().all(|text| !text.contains("4111")), "{refusals:?}");
    }

    #[test]
    fn lists_flags_and_words_are_read_as_strictly() {
        let body = br#"{"w":["4111","b"],"n":[1,300],"t":true,"f":[true],"l":"4111"}"#;
        let mut object = Object::parse(body).unwrap();

        let refusals = [
            detail(&object.words::<crate::store::Priority>("w").unwrap_err()),
            detail(&object.numbers::<u8>("n").unwrap_err()),
            detail(&object.words::<crate::store::Priority>("f").unwrap_err()),
            detail(&object.numbers::<u8>("l").unwrap_err()),
        ];

        let named = [
            "w: is no word that is known here",
            "n: is too large",
            "f: must be a list of strings",
            "l: must be a list",
        ];
        assert_eq!(refusals, named);
        assert!(object.flag("t").unwrap() && !object.flag("absent").unwrap());
        let long = format!(r#"{{"a":[{}1]}}"#, "1,".repeat(FIELDS_MAX));
        assert!(Object::parse(long.as_bytes()).is_err());
    }

    #[test]
    fn what_no_request_has_is_refused() {
        for body in [
            "",
            "[]",
            "7",
            "null",
            r#"{"a":null}"#,
            r#"{"a":[null]}"#,
            r#"{"a":[[[[[1]]]]]}"#,
            r#"{"a":1.5}"#,
            r#"{"a":-1}"#,
            r#"{"a":"1","a":"2"}"#,
            r#"{"a":"1"} "#.trim_end_matches(' ').trim_end_matches('}'),
            r#"{"a":"1"}{}"#,
            r#"{"a":{"a":{"a":{"a":{"a":{}}}}}}"#,
        ] {
            assert!(Object::parse(body.as_bytes()).is_err(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(body in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(mut object) = Object::parse(&body) {
                let _ = object.text("a");
                let _ = object.end();
            }
        }
    }
}
