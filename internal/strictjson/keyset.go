package strictjson

import (
	"bytes"
	"hash/maphash"
)

// smallKeys is the number of keys that are compared one by one; a hash table
// pays only above it.
const smallKeys = 8

// keySeed keeps an attacker from choosing keys that collide. It has no effect
// on any result.
var keySeed = maphash.MakeSeed()

// keySet is the set of keys seen in one object. It stores where a key is in
// the text instead of the key: about 20 bytes a key, free of pointers, where
// a map of strings takes 50. A header may have millions of keys.
type keySet struct {
	keys  []seenKey
	table []uint32 // index into keys plus one, 0 if free; nil while small
}

type seenKey struct {
	hash   uint32
	offset uint32 // of the opening quote
}

// reset empties the set. The table goes, because the next object is likely
// small and clearing a huge table for each small object takes quadratic time.
func (k *keySet) reset() {
	k.keys = k.keys[:0]
	k.table = nil
}

// add puts the key, whose opening quote is at data[offset], into the set and
// reports whether it is new.
func (k *keySet) add(data []byte, offset int, key []byte) bool {
	seen := seenKey{hash: uint32(maphash.Bytes(keySeed, key)), offset: uint32(offset)}
	if k.table == nil {
		for _, old := range k.keys {
			if old.hash == seen.hash && old.is(data, key) {
				return false
			}
		}
		k.keys = append(k.keys, seen)
		if len(k.keys) > smallKeys {
			k.rehash(4 * smallKeys)
		}
		return true
	}
	slot := k.slot(seen.hash)
	for k.table[slot] != 0 {
		old := k.keys[k.table[slot]-1]
		if old.hash == seen.hash && old.is(data, key) {
			return false
		}
		slot = (slot + 1) & (len(k.table) - 1)
	}
	k.keys = append(k.keys, seen)
	k.table[slot] = uint32(len(k.keys))
	if len(k.keys) > len(k.table)/4*3 {
		k.rehash(2 * len(k.table))
	}
	return true
}

// rehash builds a table of the given size, a power of two.
func (k *keySet) rehash(size int) {
	k.table = make([]uint32, size)
	for i, key := range k.keys {
		slot := k.slot(key.hash)
		for k.table[slot] != 0 {
			slot = (slot + 1) & (size - 1)
		}
		k.table[slot] = uint32(i + 1)
	}
}

func (k *keySet) slot(hash uint32) int { return int(hash) & (len(k.table) - 1) }

// is reports whether the seen key has the given contents. The key was read
// before, so reading it once more can't fail.
func (k seenKey) is(data []byte, key []byte) bool {
	s := Scanner{data: data, pos: int(k.offset)}
	text, err := s.quoted()
	return err == nil && bytes.Equal(text, key)
}
