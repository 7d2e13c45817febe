//! Reads the known-answer vectors of `tests/vectors`, so that a failing test names file and id.
//!
//! A vector that lacks what a test asks for is a defect of the test or of the file, never a case
//! to handle: every getter panics with the vector's name.

use std::fmt;
use std::path::PathBuf;

use serde_json::{Map, Value};

/// One vector: a JSON object, or an object inside it (`in`, `out`), that knows its name.
#[derive(Debug, Clone)]
pub struct Vector {
    name: String,
    fields: Map<String, Value>,
}

/// All vectors of `vectors/<file>.json`, in the file's order.
///
/// # Panics
/// When the file is missing, is not the form that `vectors/README.md` describes, or is empty.
pub fn load(file: &str) -> Vec<Vector> {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(format!("{file}.json"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("cannot read vectors/{file}.json: {error}"));
    let root: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("vectors/{file}.json is not JSON: {error}"));
    let vectors = root["vectors"].as_array().cloned().unwrap_or_default();
    assert!(!vectors.is_empty(), "vectors/{file}.json holds no vectors");
    vectors.into_iter().map(|value| Vector::named(file, value)).collect()
}

impl Vector {
    fn named(file: &str, value: Value) -> Self {
        let Value::Object(fields) = value else { panic!("{file}.json: a vector is no object") };
        let id = fields.get("id").and_then(Value::as_str).unwrap_or("without an id");
        Self { name: format!("{file}.json {id}"), fields }
    }

    /// The text of a field.
    ///
    /// # Panics
    /// When the vector has no such text.
    pub fn text(&self, field: &str) -> &str {
        self.find(field).unwrap_or_else(|| panic!("{self}: no text {field:?}"))
    }

    /// The text of a field that only some vectors have.
    pub fn find(&self, field: &str) -> Option<&str> {
        self.fields.get(field)?.as_str()
    }

    /// The bytes of a hex field.
    ///
    /// # Panics
    /// When the vector has no such field or it is not hex.
    pub fn hex(&self, field: &str) -> Vec<u8> {
        hex::decode(self.text(field)).unwrap_or_else(|error| panic!("{self}: {field}: {error}"))
    }

    /// A number.
    ///
    /// # Panics
    /// When the vector has no such number.
    pub fn number(&self, field: &str) -> usize {
        let number = self.fields.get(field).and_then(Value::as_u64);
        let number = number.unwrap_or_else(|| panic!("{self}: no number {field:?}"));
        usize::try_from(number).unwrap_or_else(|_| panic!("{self}: {field} is too large"))
    }

    /// A truth value.
    ///
    /// # Panics
    /// When the vector has no such truth value.
    pub fn flag(&self, field: &str) -> bool {
        let flag = self.fields.get(field).and_then(Value::as_bool);
        flag.unwrap_or_else(|| panic!("{self}: no flag {field:?}"))
    }

    /// An object inside this one, under the same name.
    ///
    /// # Panics
    /// When the vector has no such object.
    pub fn part(&self, field: &str) -> Vector {
        let part = self.fields.get(field).and_then(Value::as_object).cloned();
        let fields = part.unwrap_or_else(|| panic!("{self}: no object {field:?}"));
        Vector { name: format!("{self} {field}"), fields }
    }

    /// The objects of a list inside this one, each under the same name and its place.
    ///
    /// # Panics
    /// When the vector has no such list of objects.
    pub fn list(&self, field: &str) -> Vec<Vector> {
        let list = self.fields.get(field).and_then(Value::as_array);
        let list = list.unwrap_or_else(|| panic!("{self}: no list {field:?}"));
        let part = |(place, value): (usize, &Value)| {
            let fields = value.as_object().cloned();
            let fields = fields.unwrap_or_else(|| panic!("{self}: {field} {place} is no object"));
            Vector { name: format!("{self} {field} {place}"), fields }
        };
        list.iter().enumerate().map(part).collect()
    }

    /// The names of all fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// Whether the field is there at all.
    pub fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }
}

/// File and id: what a failing test says first.
impl fmt::Display for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_named_by_file_and_id() {
        let vectors = load("pin_translation");

        let side = vectors[0].part("in");

        assert_eq!(vectors[0].to_string(), "pin_translation.json pin_translation-a001");
        assert_eq!(side.number("format"), 0);
        assert_eq!(side.hex("block").len(), 8);
    }

    #[test]
    #[should_panic(expected = "kcv.json kcv-a001: no text \"ksn\"")]
    fn a_missing_field_names_the_vector() {
        let vectors = load("kcv");

        vectors[0].text("ksn");
    }
}
