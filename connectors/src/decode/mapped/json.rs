//! JSON of a vendor's own making. Only what the paths touch is looked into, each object once.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use wardbell_schemas::decoded::RawField;
use wardbell_schemas::fault::KeyFault;
use wardbell_schemas::reading::Reason;

use super::field::{ControlFields, Fields, Kind};
use super::path::{Path, Step, print_step};
use super::{MappingForm, PlaceForm};
use crate::decode::json::{field, not_json};
use crate::decode::{Decoded, Undecodable};

/// Where readings and requests stand in a record.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct JsonShape {
    /// To the elements that hold readings; `None`: the record is the only one.
    records: Option<Vec<Step>>,
    fields: Fields<Place>,
    wide: Vec<Wide>,
    control: Option<ControlFields<Place>>,
}

/// A reading with a place of its own, below an element.
#[derive(Debug, Clone, PartialEq)]
struct Wide {
    label: String,
    steps: Vec<Step>,
}

/// A place as seen from an element.
#[derive(Debug, Clone, PartialEq)]
enum Place {
    /// The name of the member that the element is.
    Key,
    /// Below the element itself.
    Own(Vec<Step>),
    /// Below the element, or what is around it, nearest first.
    Inherited(Vec<Step>),
    /// Below the enclosing element of this level; 0 is the record.
    Level(usize, Vec<Step>),
}

impl JsonShape {
    pub fn new(form: &MappingForm, faults: &mut Vec<KeyFault>) -> Self {
        let records = form.records.as_deref().and_then(|text| match Path::parse(text) {
            Ok(mut path) => {
                if path.steps.last() != Some(&Step::Each) {
                    path.steps.push(Step::Each);
                }
                Some(path.steps)
            }
            Err(message) => {
                let help = "like \"readings\" or \"beds[*].monitors[*].readings\"";
                faults.push(KeyFault::new(&["records"], message, help));
                None
            }
        });
        let around = records.as_deref().unwrap_or_default();
        let mut place = |form: &PlaceForm, kind: Kind| place(form, kind, around);
        let fields = Fields::new(&form.fields, &mut place, faults);
        let control = ControlFields::new(&form.control, &form.fields, &mut place, faults);
        let mut wide = Vec::new();
        for (i, entry) in form.wide.iter().enumerate() {
            let steps = match &entry.at {
                PlaceForm::At(text) => Path::parse(text).and_then(|path| match path {
                    Path { is_rooted: false, steps } if !steps.contains(&Step::Each) => Ok(steps),
                    _ => Err(format!("`{text}` must lie below the element, without `$` and `[*]`")),
                }),
                _ => Err("a path is expected".to_owned()),
            };
            match steps {
                Ok(steps) => wide.push(Wide { label: entry.label(), steps }),
                Err(message) => {
                    let path = ["wide", &i.to_string(), "at"];
                    faults.push(KeyFault::new(&path, message, "like at = \"vitals.spo2\""));
                }
            }
        }
        Self { records, fields, wide, control }
    }

    /// # Errors
    /// A fault of the record as a whole.
    pub fn parts<'a>(&self, text: &'a str, max: usize) -> Result<Vec<Decoded<'a>>, Undecodable> {
        let raw: &'a RawValue = serde_json::from_str(text).map_err(|error| not_json("JSON", &error))?;
        let root = Node::new(raw);
        let record = Element { node: &root, key: None, outer: None, level: 0, path: String::new() };
        if let Some(control) = self.control.as_ref().and_then(|fields| fields.control(&|place| place.read(&record))) {
            return Ok(vec![control]);
        }
        let mut parts = Vec::new();
        let mut read = |element: &Element<'_, 'a>| {
            self.read(element, &mut parts);
            parts.len() <= max
        };
        match &self.records {
            Some(steps) => {
                each(&record, steps, &mut read);
            }
            None => {
                read(&record);
            }
        }
        if parts.len() > max {
            let detail = format!("more than {max} readings in one record");
            return Err(Undecodable::record(Reason::FieldText, "records", detail));
        }
        if parts.is_empty() {
            let detail = "no reading where the connector's file looks for them";
            return Err(Undecodable::record(Reason::NoReading, "", detail));
        }
        Ok(parts)
    }

    /// The readings of one element.
    fn read<'a>(&self, element: &Element<'_, 'a>, parts: &mut Vec<Decoded<'a>>) {
        if self.wide.is_empty() {
            let index = parts.len() as u32;
            parts.push(self.fields.reading(&|place| place.read(element), None, index, element.path.clone()));
            return;
        }
        for wide in &self.wide {
            let index = parts.len() as u32;
            let mut path = element.path.clone();
            wide.steps.iter().for_each(|step| print_step(&mut path, step));
            match walk(element.node, &wide.steps) {
                Found::Nothing => {}
                Found::One(node) => {
                    let own = Element { node, key: None, outer: Some(element), level: element.level + 1, path };
                    let value = field(Some(node.raw));
                    let at = |place: &Place| place.read(&own);
                    parts.push(self.fields.reading(&at, Some((wide.label.as_str(), value)), index, own.path.clone()));
                }
                Found::Several => {
                    let detail = "an object has this member twice".to_owned();
                    parts.push(Err(Undecodable { reason: Reason::FieldType, field: path, detail, index }));
                }
            }
        }
    }
}

/// A place of the file; `around` are the steps to the elements that hold readings.
fn place(form: &PlaceForm, kind: Kind, around: &[Step]) -> Result<Place, String> {
    let text = match form {
        PlaceForm::Key => return Ok(Place::Key),
        PlaceForm::At(text) => text,
        _ => return Err("a path is expected; columns belong to CSV".to_owned()),
    };
    let path = Path::parse(text)?;
    if !path.is_rooted {
        return match path {
            _ if path.has_each() => Err(format!("`{text}`: a path with `[*]` begins with `$`")),
            path if kind.is_inherited => Ok(Place::Inherited(path.steps)),
            path => Ok(Place::Own(path.steps)),
        };
    }
    // "$.beds[*].id" is of the bed that the element lies in: the lists must be those on the way to the element.
    let depth = path.steps.iter().rposition(|step| *step == Step::Each).map_or(0, |last| last + 1);
    if path.steps.get(..depth) != around.get(..depth) {
        return Err(format!("`{text}`: its lists are not those of `records`"));
    }
    let level = around[..depth].iter().filter(|step| **step == Step::Each).count();
    Ok(Place::Level(level, path.steps[depth..].to_vec()))
}

impl Place {
    fn read<'a>(&self, element: &Element<'_, 'a>) -> RawField<'a> {
        match self {
            Place::Key => element.nearest_key(),
            Place::Own(steps) => walk(element.node, steps).field(),
            Place::Level(level, steps) => match element.at_level(*level) {
                Some(element) => walk(element.node, steps).field(),
                None => RawField::Absent,
            },
            Place::Inherited(steps) => {
                let mut found = RawField::Absent;
                let mut around = Some(element);
                while let Some(element) = around {
                    found = walk(element.node, steps).field();
                    if found.is_present() {
                        break;
                    }
                    around = element.outer;
                }
                found
            }
        }
    }
}

/// An element on the way to a reading, with those it lies in.
struct Element<'n, 'a> {
    node: &'n Node<'a>,
    /// Name of the member it is, where the members of an object are gone through.
    key: Option<&'n Cow<'a, str>>,
    outer: Option<&'n Element<'n, 'a>>,
    /// Lists between the record and this.
    level: usize,
    /// For people, without anything of the record's content.
    path: String,
}

impl<'a> Element<'_, 'a> {
    fn at_level(&self, level: usize) -> Option<&Element<'_, 'a>> {
        let mut element = self;
        while element.level > level {
            element = element.outer?;
        }
        (element.level == level).then_some(element)
    }

    fn nearest_key(&self) -> RawField<'a> {
        let mut around = Some(self);
        while let Some(element) = around {
            if let Some(key) = element.key {
                return RawField::Text(key.clone());
            }
            around = element.outer;
        }
        RawField::Absent
    }
}

/// Visits the elements that some steps lead to, until `visit` says that it has enough.
fn each<'a>(element: &Element<'_, 'a>, steps: &[Step], visit: &mut dyn FnMut(&Element<'_, 'a>) -> bool) -> bool {
    let (mut node, mut path) = (element.node, element.path.clone());
    for (i, step) in steps.iter().enumerate() {
        if *step == Step::Each {
            for (place, child) in node.children().iter().enumerate() {
                let inner = Element {
                    node: &child.node,
                    key: child.key.as_ref(),
                    outer: Some(element),
                    level: element.level + 1,
                    path: format!("{path}[{place}]"),
                };
                let rest = &steps[i + 1..];
                let goes_on = if rest.is_empty() { visit(&inner) } else { each(&inner, rest, visit) };
                if !goes_on {
                    return false;
                }
            }
            return true;
        }
        match walk(node, std::slice::from_ref(step)) {
            Found::One(next) => node = next,
            Found::Nothing | Found::Several => return true,
        }
        print_step(&mut path, step);
    }
    true
}

/// What some steps lead to.
enum Found<'n, 'a> {
    Nothing,
    One(&'n Node<'a>),
    /// An object that has a member twice: nobody knows which one is meant.
    Several,
}

impl<'a> Found<'_, 'a> {
    fn field(self) -> RawField<'a> {
        match self {
            Found::Nothing => RawField::Absent,
            Found::One(node) => field(Some(node.raw)),
            Found::Several => RawField::Nested,
        }
    }
}

fn walk<'n, 'a>(node: &'n Node<'a>, steps: &[Step]) -> Found<'n, 'a> {
    let mut node = node;
    for step in steps {
        let mut found = node.children().iter().enumerate().filter(|(place, child)| match (step, &child.key) {
            (Step::Member(name), Some(key)) => name == key,
            (Step::Place(wanted), None) => wanted == place,
            _ => false,
        });
        node = match (found.next(), found.next()) {
            (Some((_, child)), None) => &child.node,
            (Some(_), Some(_)) => return Found::Several,
            (None, _) => return Found::Nothing,
        };
    }
    Found::One(node)
}

/// A value of the record, looked into when it is first needed.
struct Node<'a> {
    raw: &'a RawValue,
    children: OnceCell<Vec<Child<'a>>>,
}

/// An element of a list, or a member of an object with its name.
struct Child<'a> {
    key: Option<Cow<'a, str>>,
    node: Node<'a>,
}

impl<'a> Node<'a> {
    fn new(raw: &'a RawValue) -> Self {
        Self { raw, children: OnceCell::new() }
    }

    /// None of a value that is neither list nor object.
    fn children(&self) -> &[Child<'a>] {
        self.children.get_or_init(|| match self.raw.get().as_bytes().first() {
            // The record has been read once as a whole, so this cannot fail.
            Some(b'{' | b'[') => {
                serde_json::from_str::<Children<'a>>(self.raw.get()).map_or_else(|_| Vec::new(), |Children(all)| all)
            }
            _ => Vec::new(),
        })
    }
}

/// The children of a list or an object, in their order.
struct Children<'a>(Vec<Child<'a>>);

/// A member's name, borrowed where it holds no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Children<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListOrObject;

        impl<'de> Visitor<'de> for ListOrObject {
            type Value = Children<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list or an object")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Children<'de>, A::Error> {
                let mut children = Vec::new();
                while let Some(raw) = list.next_element::<&'de RawValue>()? {
                    children.push(Child { key: None, node: Node::new(raw) });
                }
                Ok(Children(children))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Children<'de>, A::Error> {
                let mut children = Vec::new();
                while let Some((Key(key), raw)) = object.next_entry::<Key<'de>, &'de RawValue>()? {
                    children.push(Child { key: Some(key), node: Node::new(raw) });
                }
                Ok(Children(children))
            }
        }

        deserializer.deserialize_any(ListOrObject)
    }
}
