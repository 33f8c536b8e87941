//! Python's pickles, of all protocols that write bytes (2 to 5; PEP 307, PEP 3154, PEP 574), as data alone: classes
//! and calls are noted by name, and nothing is executed.
//!
//! Objects are kept once and referred to by index, so that memory grows with the file however often a pickle
//! repeats them, and no value is as deep as the stack.

use std::collections::HashMap;

use crate::base::{Error, Result};

/// An object of [`Pickle::objects`], by its index.
pub type Id = u32;

/// More than any state dict has.
const MOST_OBJECTS: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// What no weight is made of: bytes, sets, numbers of more than 64 bits.
    Other(&'static str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// Keys and values in their order; those of an `OrderedDict` too.
    Dict(Vec<(Id, Id)>),
    /// `module.name`
    Class(String),
    /// A call that was not made, and the state that the object would get.
    Call {
        function: Id,
        arguments: Id,
        state: Option<Id>,
    },
    /// What stands outside of the pickle: a storage.
    Persistent(Id),
}

/// All objects of a pickle.
pub struct Pickle {
    objects: Vec<Object>,
    root: Id,
}

impl Pickle {
    /// Reads a pickle; `file` is what messages call it.
    ///
    /// # Errors
    /// When it is cut off or damaged, or has an instruction that `torch.save` does not write.
    pub fn read(file: &str, bytes: &[u8]) -> Result<Self> {
        let objects = vec![Object::None, Object::Bool(false), Object::Bool(true)];
        let machine =
            Machine { bytes, at: 0, objects, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        machine.run().map_err(|(at, why)| {
            Error::input(format!("`{file}`: its pickle is damaged at byte {at}: {why}"))
                .help("copy or save the checkpoint once more")
        })
    }

    pub fn root(&self) -> Id {
        self.root
    }

    pub fn object(&self, id: Id) -> &Object {
        &self.objects[id as usize]
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        match self.object(id) {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn int(&self, id: Id) -> Option<i64> {
        match self.object(id) {
            Object::Int(n) => Some(*n),
            _ => None,
        }
    }

    pub fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.object(id) {
            Object::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The class that `id` is, or that it is called of.
    pub fn class(&self, id: Id) -> Option<&str> {
        match self.object(id) {
            Object::Class(name) => Some(name),
            Object::Call { function, .. } => match self.object(*function) {
                Object::Class(name) => Some(name),
                _ => None,
            },
            _ => None,
        }
    }

    /// Entries with text as keys: of a dict, or of an object's attributes.
    pub fn entries(&self, id: Id) -> Option<Vec<(&str, Id)>> {
        let pairs = match self.object(id) {
            Object::Dict(pairs) => pairs,
            Object::Call { state: Some(state), .. } => match self.object(*state) {
                Object::Dict(pairs) => pairs,
                _ => return None,
            },
            _ => return None,
        };
        Some(pairs.iter().filter_map(|(key, value)| Some((self.text(*key)?, *value))).collect())
    }

    /// What an object is, for messages.
    pub fn kind(&self, id: Id) -> String {
        match self.object(id) {
            Object::None => "None".into(),
            Object::Bool(_) => "a bool".into(),
            Object::Int(_) => "an int".into(),
            Object::Float(_) => "a float".into(),
            Object::Text(_) => "a str".into(),
            Object::Other(what) => (*what).into(),
            Object::Tuple(_) => "a tuple".into(),
            Object::List(_) => "a list".into(),
            Object::Dict(_) => "a dict".into(),
            Object::Persistent(_) => "a storage".into(),
            Object::Class(name) => format!("the class {name}"),
            Object::Call { .. } => format!("an object of {}", self.class(id).unwrap_or("an unnamed class")),
        }
    }
}

type Step<T> = std::result::Result<T, String>;

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    objects: Vec<Object>,
    stack: Vec<Id>,
    /// How high the stack was at each mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    fn run(mut self) -> std::result::Result<Pickle, (usize, String)> {
        loop {
            let at = self.at;
            match self.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Pickle { objects: self.objects, root }),
                Err(why) => return Err((at, why)),
            }
        }
    }

    fn take(&mut self, n: u64) -> Step<&[u8]> {
        let left = self.bytes.len() - self.at;
        if n > left as u64 {
            return Err(format!("it goes on for {n} bytes, and there are {left}"));
        }
        self.at += n as usize;
        Ok(&self.bytes[self.at - n as usize..self.at])
    }

    fn number(&mut self, width: u64) -> Step<u64> {
        Ok(self.take(width)?.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    fn line(&mut self) -> Step<String> {
        let end = self.bytes[self.at..].iter().position(|b| *b == b'\n').ok_or("a line has no end")?;
        let line = self.take(end as u64 + 1)?;
        Ok(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    fn push(&mut self, object: Object) -> Step<()> {
        if self.objects.len() >= MOST_OBJECTS {
            return Err(format!("it has more than {MOST_OBJECTS} objects"));
        }
        self.stack.push(self.objects.len() as Id);
        self.objects.push(object);
        Ok(())
    }

    /// Nothing below the last mark is taken.
    fn pop(&mut self) -> Step<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("the stack is empty".into());
        }
        Ok(self.stack.pop().expect("not empty"))
    }

    fn top(&mut self) -> Step<Id> {
        self.stack.last().copied().ok_or_else(|| "the stack is empty".into())
    }

    fn pop_to_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("there is no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn text(&mut self, width: u64) -> Step<()> {
        let len = self.number(width)?;
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| "a text is not UTF-8")?;
        let text = text.to_string();
        self.push(Object::Text(text))
    }

    /// Of `n` bytes, two's complement.
    fn long(&mut self, n: u64) -> Step<()> {
        let bytes = self.take(n)?;
        if n > 8 {
            return self.push(Object::Other("a number of more than 64 bits"));
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let start = if negative { -1i64 } else { 0 };
        let value = bytes.iter().rev().fold(start, |n, b| n << 8 | i64::from(*b));
        self.push(Object::Int(value))
    }

    fn skip(&mut self, width: u64, what: &'static str) -> Step<()> {
        let len = self.number(width)?;
        self.take(len)?;
        self.push(Object::Other(what))
    }

    fn tuple(&mut self, n: usize) -> Step<()> {
        let mut items = Vec::new();
        for _ in 0..n {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Object::Tuple(items))
    }

    fn memoize(&mut self, at: u64) -> Step<()> {
        let id = self.top()?;
        if self.memo.len() >= MOST_OBJECTS {
            return Err(format!("it remembers more than {MOST_OBJECTS} objects"));
        }
        self.memo.insert(at as u32, id);
        Ok(())
    }

    fn recall(&mut self, width: u64) -> Step<()> {
        let at = self.number(width)? as u32;
        let id = *self.memo.get(&at).ok_or_else(|| format!("object {at} is not remembered"))?;
        self.stack.push(id);
        Ok(())
    }

    fn append(&mut self, items: &[Id]) -> Step<()> {
        let list = self.top()? as usize;
        match &mut self.objects[list] {
            Object::List(all) => all.extend_from_slice(items),
            Object::Other(_) => {}
            _ => return Err("something is appended to what is no list".into()),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Step<()> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("a key has no value".into());
        }
        let dict = self.top()? as usize;
        match &mut self.objects[dict] {
            Object::Dict(all) => all.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            // A subclass of dict.
            Object::Call { .. } => {}
            _ => return Err("a key is set of what is no dict".into()),
        }
        Ok(())
    }

    /// An empty `OrderedDict` or `defaultdict` is a dict; any other call is noted.
    fn call(&mut self) -> Step<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let is_dict = matches!(&self.objects[function as usize], Object::Class(name)
            if ["collections.OrderedDict", "collections.defaultdict"].contains(&name.as_str()));
        self.push(if is_dict {
            Object::Dict(Vec::new())
        } else {
            Object::Call { function, arguments, state: None }
        })
    }

    /// Attributes of a dict (`_metadata` of a state dict) are no entries.
    fn build(&mut self) -> Step<()> {
        let new = self.pop()?;
        let object = self.top()? as usize;
        if let Object::Call { state, .. } = &mut self.objects[object] {
            *state = Some(new);
        }
        Ok(())
    }

    fn global(&mut self) -> Step<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (&self.objects[module as usize], &self.objects[name as usize]) {
            (Object::Text(module), Object::Text(name)) => {
                let class = format!("{module}.{name}");
                self.push(Object::Class(class))
            }
            _ => Err("the name of a class is no text".into()),
        }
    }

    /// One instruction; the object that the pickle stands for, at its end.
    fn step(&mut self) -> Step<Option<Id>> {
        let code = self.take(1)?[0];
        match code {
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.stack.push(0),
            0x89 => self.stack.push(1),
            0x88 => self.stack.push(2),
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'q' | b'r' => {
                let at = self.number(if code == b'q' { 1 } else { 4 })?;
                self.memoize(at)?;
            }
            0x94 => self.memoize(self.memo.len() as u64)?,
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            _ => self.value(code)?,
        }
        Ok(None)
    }

    /// An instruction that makes or changes an object.
    fn value(&mut self, code: u8) -> Step<()> {
        match code {
            b'K' => self.number(1).and_then(|n| self.push(Object::Int(n as i64))),
            b'M' => self.number(2).and_then(|n| self.push(Object::Int(n as i64))),
            b'J' => self.number(4).and_then(|n| self.push(Object::Int(i64::from(n as u32 as i32)))),
            b'G' => self.number(8).and_then(|n| self.push(Object::Float(f64::from_bits(n.swap_bytes())))),
            0x8a | 0x8b => self.number(if code == 0x8a { 1 } else { 4 }).and_then(|n| self.long(n)),
            0x8c => self.text(1),
            b'X' => self.text(4),
            0x8d => self.text(8),
            b'U' | b'C' => self.skip(1, "bytes"),
            b'T' | b'B' => self.skip(4, "bytes"),
            0x8e | 0x96 => self.skip(8, "bytes"),
            b')' => self.push(Object::Tuple(Vec::new())),
            b']' => self.push(Object::List(Vec::new())),
            b'}' => self.push(Object::Dict(Vec::new())),
            0x8f => self.push(Object::Other("a set")),
            0x85..=0x87 => self.tuple(usize::from(code - 0x84)),
            _ => self.compound(code),
        }
    }

    /// An instruction that makes an object of those since the last mark, or of a class.
    fn compound(&mut self, code: u8) -> Step<()> {
        match code {
            b't' => self.pop_to_mark().and_then(|items| self.push(Object::Tuple(items))),
            b'l' => self.pop_to_mark().and_then(|items| self.push(Object::List(items))),
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Object::Dict(Vec::new()))?;
                self.set(&items)
            }
            0x91 => self.pop_to_mark().and_then(|_| self.push(Object::Other("a set"))),
            b'a' => self.pop().and_then(|item| self.append(&[item])),
            b'e' | 0x90 => self.pop_to_mark().and_then(|items| self.append(&items)),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])
            }
            b'u' => self.pop_to_mark().and_then(|items| self.set(&items)),
            b'c' => {
                let class = format!("{}.{}", self.line()?, self.line()?);
                self.push(Object::Class(class))
            }
            0x93 => self.global(),
            b'R' | 0x81 => self.call(),
            0x92 => self.pop().and_then(|_| self.call()),
            b'b' => self.build(),
            b'Q' => self.pop().and_then(|id| self.push(Object::Persistent(id))),
            _ => Err(format!("the instruction 0x{code:02x} is none that torch.save writes")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Pickle> {
        Pickle::read("x", bytes)
    }

    /// What Python 3 writes for `{"a": [1, -2, 2**40, 1.5, None, True], "b": ("é",)}`, in two protocols.
    #[test]
    fn values_are_those_that_python_wrote() {
        let old = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xff\x8a\x06\x00\x00\x00\x00\x00\x01\
            G?\xf8\x00\x00\x00\x00\x00\x00N\x88eX\x01\x00\x00\x00bq\x03X\x02\x00\x00\x00\xc3\xa9q\x04\x85q\x05u.";
        let new = b"\x80\x04\x95\x32\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94]\x94(K\x01J\xfe\xff\xff\xff\
            \x8a\x06\x00\x00\x00\x00\x00\x01G?\xf8\x00\x00\x00\x00\x00\x00N\x88e\x8c\x01b\x94\x8c\x02\xc3\xa9\x94\x85\x94u.";
        for bytes in [&old[..], &new[..]] {
            let pickle = read(bytes).unwrap();
            let entries = pickle.entries(pickle.root()).unwrap();
            assert_eq!(entries.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["a", "b"]);
            let Object::List(list) = pickle.object(entries[0].1) else { panic!() };
            let list: Vec<Object> = list.iter().map(|id| pickle.object(*id).clone()).collect();
            let numbers = [Object::Int(1), Object::Int(-2), Object::Int(1 << 40), Object::Float(1.5)];
            assert_eq!(list[..4], numbers);
            assert_eq!(list[4..], [Object::None, Object::Bool(true)]);
            let tuple = pickle.tuple(entries[1].1).unwrap();
            assert_eq!(pickle.text(tuple[0]), Some("é"));
        }
    }

    #[test]
    fn classes_are_named_and_never_called() {
        let pickle =
            read(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R}X\x01\x00\x00\x00kK\x07sb.").unwrap();
        assert_eq!(pickle.kind(pickle.root()), "an object of os.system");
        assert_eq!(pickle.entries(pickle.root()).unwrap().len(), 1);
    }

    #[test]
    fn repeated_objects_take_no_memory() {
        // x = (x, x), 60 times over.
        let mut bytes = b")q\x00".to_vec();
        (0..60).for_each(|_| bytes.extend(b"h\x00h\x00\x86q\x00"));
        bytes.push(b'.');
        assert_eq!(read(&bytes).unwrap().objects.len(), 3 + 61);
        // Nested deeper than any stack.
        let deep = [b")".to_vec(), b"\x85".repeat(1 << 19), b".".to_vec()].concat();
        drop(read(&deep).unwrap());
    }

    #[test]
    fn damage_is_named_with_its_place() {
        for (bytes, expected) in [
            (&b""[..], "at byte 0: it goes on for 1 bytes, and there are 0"),
            (b"N", "at byte 1: it goes on for 1 bytes"),
            (b".", "at byte 0: the stack is empty"),
            (b"X\xff\xff\xff\xffa.", "it goes on for 4294967295 bytes, and there are 2"),
            (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.", "it goes on for 18446744073709551615 bytes"),
            (b"X\x01\x00\x00\x00\xff.", "a text is not UTF-8"),
            (b"h\x05.", "object 5 is not remembered"),
            (b"t.", "there is no mark"),
            (b"N(0.", "at byte 2: the stack is empty"),
            (b"}(NNNu.", "a key has no value"),
            (b"NN(a.", "the stack is empty"),
            (b"NNa.", "appended to what is no list"),
            (b"cos.", "a line has no end"),
            (b"ifoo.", "the instruction 0x69"),
            (b"NN\x93.", "the name of a class is no text"),
        ] {
            let error = read(bytes).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(expected), "{bytes:?}: expected {expected}, found {error}");
        }
        let many = [b")".repeat(MOST_OBJECTS), b".".to_vec()].concat();
        assert!(read(&many).err().unwrap().to_string().contains("more than 1048576 objects"));
    }
}
