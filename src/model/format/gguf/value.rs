//! Values of a GGUF file's metadata.

use super::read::Reader;
use crate::base::Result;

/// A type of single values: how it stands in a file, little endian.
pub(super) trait Single: Sized {
    /// The fewest bytes of one.
    const BYTES: u64;

    fn read(reader: &mut Reader) -> Result<Self>;

    fn write(&self, out: &mut Vec<u8>);
}

macro_rules! numbers {
    ($($type:ty)*) => { $(
        impl Single for $type {
            const BYTES: u64 = size_of::<$type>() as u64;

            fn read(reader: &mut Reader) -> Result<Self> {
                Ok(<$type>::from_le_bytes(reader.bytes()?))
            }

            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )* };
}

numbers! { u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 }

impl Single for bool {
    const BYTES: u64 = 1;

    fn read(reader: &mut Reader) -> Result<Self> {
        match reader.bytes::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [byte] => Err(reader.wrong(format_args!("the byte {byte} is neither true nor false"))),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Single for String {
    /// Its length.
    const BYTES: u64 = 8;

    fn read(reader: &mut Reader) -> Result<Self> {
        reader.string()
    }

    fn write(&self, out: &mut Vec<u8>) {
        (self.len() as u64).write(out);
        out.extend_from_slice(self.as_bytes());
    }
}

/// `gguf_metadata_value_type` of an array.
const ARRAY: u32 = 9;

macro_rules! values {
    ($($id:literal $name:ident $type:ty,)*) => {
        /// A value, in one of GGUF's types.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Value {
            $($name($type),)*
            Array(Array),
        }

        /// Values of one type. Arrays of arrays are in no model that is computed here, and refused.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Array {
            $($name(Vec<$type>),)*
        }

        impl Value {
            fn type_id(&self) -> u32 {
                match self {
                    $(Value::$name(_) => $id,)*
                    Value::Array(_) => ARRAY,
                }
            }

            /// The value that follows, after its type.
            pub(super) fn read(reader: &mut Reader) -> Result<Self> {
                match u32::read(reader)? {
                    $($id => Ok(Value::$name(<$type>::read(reader)?)),)*
                    ARRAY => Ok(Value::Array(Array::read(reader)?)),
                    id => Err(reader.wrong(format_args!("{id} is no type of values"))),
                }
            }

            /// With its type before it.
            pub(super) fn write(&self, out: &mut Vec<u8>) {
                self.type_id().write(out);
                match self {
                    $(Value::$name(value) => value.write(out),)*
                    Value::Array(array) => array.write(out),
                }
            }
        }

        impl Array {
            fn read(reader: &mut Reader) -> Result<Self> {
                match u32::read(reader)? {
                    $($id => Ok(Array::$name(reader.many()?)),)*
                    ARRAY => Err(reader.wrong("an array of arrays, which no model needs")),
                    id => Err(reader.wrong(format_args!("{id} is no type of values"))),
                }
            }

            fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Array::$name(values) => {
                        ($id as u32).write(out);
                        (values.len() as u64).write(out);
                        values.iter().for_each(|value| value.write(out));
                    })*
                }
            }

            pub fn len(&self) -> usize {
                match self { $(Array::$name(values) => values.len(),)* }
            }

            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// The first `n` values.
            pub fn first(&self, n: usize) -> Vec<Value> {
                match self {
                    $(Array::$name(values) => values.iter().take(n).cloned().map(Value::$name).collect(),)*
                }
            }
        }

        $(
            impl From<$type> for Value {
                fn from(value: $type) -> Self {
                    Value::$name(value)
                }
            }

            impl From<Vec<$type>> for Value {
                fn from(values: Vec<$type>) -> Self {
                    Value::Array(Array::$name(values))
                }
            }
        )*
    };
}

values! {
    0 U8 u8,
    1 I8 i8,
    2 U16 u16,
    3 I16 i16,
    4 U32 u32,
    5 I32 i32,
    6 F32 f32,
    7 Bool bool,
    8 String String,
    10 U64 u64,
    11 I64 i64,
    12 F64 f64,
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::String(text.to_string())
    }
}

impl Value {
    /// A whole number that is not negative, of any integer type.
    pub fn as_size(&self) -> Option<usize> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => usize::try_from(n).ok(),
            Value::U64(n) => usize::try_from(n).ok(),
            Value::I8(n) => usize::try_from(n).ok(),
            Value::I16(n) => usize::try_from(n).ok(),
            Value::I32(n) => usize::try_from(n).ok(),
            Value::I64(n) => usize::try_from(n).ok(),
            _ => None,
        }
    }

    /// A finite number. One of 32 bits is the shortest decimal fraction that stands for it: 1e-5, and not
    /// 9.99999974737875e-6.
    pub fn as_float(&self) -> Option<f64> {
        let x = match self {
            Value::F64(x) => *x,
            Value::F32(x) => x.to_string().parse().ok()?,
            _ => return None,
        };
        Some(x).filter(|x| x.is_finite())
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl std::fmt::Display for Value {
    /// Of an array, the first 8 values and how many there are.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::U8(n) => n.fmt(f),
            Value::I8(n) => n.fmt(f),
            Value::U16(n) => n.fmt(f),
            Value::I16(n) => n.fmt(f),
            Value::U32(n) => n.fmt(f),
            Value::I32(n) => n.fmt(f),
            Value::U64(n) => n.fmt(f),
            Value::I64(n) => n.fmt(f),
            Value::F32(x) => x.fmt(f),
            Value::F64(x) => x.fmt(f),
            Value::Bool(value) => value.fmt(f),
            Value::String(text) => write!(f, "{text:?}"),
            Value::Array(array) => {
                let first: Vec<String> = array.first(8).iter().map(Value::to_string).collect();
                let more = if array.len() > first.len() { ", …" } else { "" };
                write!(f, "[{}{more}] {} values", first.join(", "), array.len())
            }
        }
    }
}
