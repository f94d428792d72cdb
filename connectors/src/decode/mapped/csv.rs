//! CSV of a vendor's own making. A record is some rows; columns are found by their names in the header row, or counted.
//!
//! A name that stands in the header twice is never chosen from: the file has to give the column's number. Header rows that
//! come again between data rows are passed over. A row of another length than the header is refused as a whole, since a
//! lost delimiter would shift values under other names.

use std::borrow::Cow;

use csv::{Reader, ReaderBuilder, StringRecord};
use wardbell_schemas::decoded::RawField;
use wardbell_schemas::fault::KeyFault;
use wardbell_schemas::reading::Reason;

use super::field::{Fields, Kind};
use super::{CsvForm, MappingForm, PlaceForm};
use crate::decode::{Decoded, Undecodable};

/// Where readings stand in the rows of a record.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct CsvShape {
    delimiter: u8,
    quote: Option<u8>,
    comment: Option<u8>,
    /// Names of the columns where records have no header row.
    columns: Option<Vec<String>>,
    fields: Fields<Column>,
    wide: Vec<Wide>,
}

/// A column by its name or its number, from 1.
#[derive(Debug, Clone, PartialEq)]
enum Column {
    Named(String),
    Numbered(usize),
}

/// A column of values.
#[derive(Debug, Clone, PartialEq)]
struct Wide {
    label: String,
    column: Column,
}

impl CsvShape {
    pub fn new(form: &MappingForm, faults: &mut Vec<KeyFault>) -> Self {
        let CsvForm { delimiter, quote, comment, columns } = &form.csv;
        let mut sign = |name: &str, text: &Option<String>, default: Option<u8>| match text.as_deref().map(str::as_bytes)
        {
            None => default,
            Some([]) if name == "quote" => None,
            Some([sign]) if sign.is_ascii() => Some(*sign),
            Some(_) => {
                faults.push(KeyFault::new(&["csv", name], "one ASCII character is expected", "like \";\" or \"\\t\""));
                default
            }
        };
        let delimiter = sign("delimiter", delimiter, Some(b',')).unwrap_or(b',');
        let (quote, comment) = (sign("quote", quote, Some(b'"')), sign("comment", comment, None));
        let columns: Option<Vec<String>> =
            columns.as_ref().map(|names| names.iter().map(|name| name.trim().to_owned()).collect());
        // Where the file itself names the columns, a wrong one is found when the file is read.
        let column = |form: &PlaceForm| match form {
            PlaceForm::At(name) => Ok(Column::Named(name.trim().to_owned())),
            PlaceForm::Column(number) => Ok(Column::Numbered(*number)),
            _ => Err("the name or the number of a column is expected".to_owned()),
        };
        let checked = |form: &PlaceForm| {
            let column = column(form)?;
            match &columns {
                Some(names) => column.place(names).map(|_| column).map_err(|fault| fault.detail),
                None => Ok(column),
            }
        };
        let fields = Fields::new(&form.fields, &mut |form: &PlaceForm, _: Kind| checked(form), faults);
        let mut wide = Vec::new();
        for (i, entry) in form.wide.iter().enumerate() {
            match checked(&entry.at) {
                Ok(column) => wide.push(Wide { label: entry.label(), column }),
                Err(message) => {
                    let help = "like at = \"SpO2\" or at = 7";
                    faults.push(KeyFault::new(&["wide", &i.to_string(), "at"], message, help));
                }
            }
        }
        Self { delimiter, quote, comment, columns, fields, wide }
    }

    /// # Errors
    /// A fault of the record as a whole.
    pub fn parts<'a>(&self, text: &str, max: usize) -> Result<Vec<Decoded<'a>>, Undecodable> {
        let mut rows = self.reader(text).into_records();
        let header: Vec<String> = match &self.columns {
            Some(names) => names.clone(),
            None => match rows.next() {
                Some(Ok(row)) => row.iter().map(|name| name.trim().to_owned()).collect(),
                Some(Err(error)) => return Err(unreadable(&error)),
                None => return Err(Undecodable::record(Reason::NoReading, "", "the record has no rows")),
            },
        };
        let fields = self.fields.try_map(&mut |column: &Column| column.place(&header))?;
        let wide: Vec<(&Wide, Result<usize, Undecodable>)> =
            self.wide.iter().map(|wide| (wide, wide.column.place(&header))).collect();
        // A column that is not there is told once, not once for each row.
        let mut parts: Vec<Decoded<'a>> = wide.iter().filter_map(|(_, place)| place.clone().err().map(Err)).collect();
        for (i, row) in rows.enumerate() {
            let row = row.map_err(|error| unreadable(&error))?;
            let is_empty = row.iter().all(|cell| cell.trim().is_empty());
            let is_header = row.iter().map(str::trim).eq(header.iter().map(String::as_str));
            if is_empty || is_header {
                continue;
            }
            // Counted from 1, without the header row.
            let path = format!("row[{}]", i + 1);
            let index = parts.len() as u32;
            if row.len() != header.len() {
                let detail = format!("{} cells where the header has {}", row.len(), header.len());
                parts.push(Err(Undecodable { reason: Reason::Parse, field: path, detail, index }));
            } else if wide.is_empty() {
                parts.push(fields.reading(&|place| cell(&row, *place), None, index, path));
            } else {
                for (wide, place) in &wide {
                    let Ok(place) = place else {
                        continue;
                    };
                    let own = Some((wide.label.as_str(), cell(&row, *place)));
                    let (index, path) = (parts.len() as u32, format!("{path}.{}", wide.label));
                    parts.push(fields.reading(&|place| cell(&row, *place), own, index, path));
                }
            }
            if parts.len() > max {
                let detail = format!("more than {max} readings in one record");
                return Err(Undecodable::record(Reason::FieldText, "", detail));
            }
        }
        if parts.is_empty() {
            return Err(Undecodable::record(Reason::NoReading, "", "the record has no rows of data"));
        }
        Ok(parts)
    }

    fn reader<'t>(&self, text: &'t str) -> Reader<&'t [u8]> {
        let mut builder = ReaderBuilder::new();
        builder.has_headers(false).flexible(true).delimiter(self.delimiter).comment(self.comment);
        match self.quote {
            Some(quote) => builder.quote(quote),
            None => builder.quoting(false),
        };
        builder.from_reader(text.as_bytes())
    }
}

impl Column {
    /// Its place in a header, from 0.
    fn place(&self, header: &[String]) -> Result<usize, Undecodable> {
        let fault = |reason, field: String, detail: &str| Err(Undecodable::record(reason, field, detail));
        match self {
            Column::Numbered(number) if *number <= header.len() => Ok(number - 1),
            Column::Numbered(number) => {
                fault(Reason::FieldMissing, format!("column {number}"), "there are fewer columns")
            }
            Column::Named(name) => {
                let mut places = (0..header.len()).filter(|place| header[*place] == *name);
                match (places.next(), places.next()) {
                    (Some(place), None) => Ok(place),
                    (None, _) => fault(Reason::FieldMissing, name.clone(), "no column has this name"),
                    (Some(_), Some(_)) => {
                        let detail = "two columns have this name; the connector's file has to give a number";
                        fault(Reason::FieldType, name.clone(), detail)
                    }
                }
            }
        }
    }
}

fn cell<'a>(row: &StringRecord, place: usize) -> RawField<'a> {
    row.get(place).map_or(RawField::Absent, |cell| RawField::Text(Cow::Owned(cell.to_owned())))
}

fn unreadable(error: &csv::Error) -> Undecodable {
    let line = error.position().map_or(0, csv::Position::line);
    Undecodable::record(Reason::Parse, "", format!("not CSV: the rows cannot be told apart at line {line}"))
}
