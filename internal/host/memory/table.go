package memory

import (
	"fmt"
	"math/bits"

	"github.com/zeebo/xxh3"

	"github.com/roosthq/roost/internal/fault"
)

// A template's file is its memory, sparse, followed by a table of chunks; docs/formats.md
// describes it.
const (
	tableMagic   = "ROOSTMEM"
	tableVersion = 1
	tableHeader  = 64
	chunkBytes   = 2 << 20
	chunkPages   = chunkBytes / PageSize
	chunkRecord  = chunkPages/8 + hashRecord
)

// chunk describes 2 MiB of a template: which pages are not zero, and the hash of those, one
// after another. A chunk of zeros has no pages and a zero hash.
type chunk struct {
	used [chunkPages / 64]uint64
	hash Hash
}

func (c *chunk) set(page int)      { c.used[page/64] |= 1 << (page % 64) }
func (c *chunk) has(page int) bool { return c.used[page/64]&(1<<(page%64)) != 0 }

func (c *chunk) count() int {
	n := 0
	for _, w := range c.used {
		n += bits.OnesCount64(w)
	}
	return n
}

// runs lists the used pages as spans within the chunk.
func (c *chunk) runs() []span {
	var out []span
	for i := range chunkPages {
		if c.has(i) {
			out = appendSpan(out, span{uint32(i), 1})
		}
	}
	return out
}

// table is what is known of a template's content.
type table struct {
	bytes  int64
	chunks []chunk
}

func newTable(bytes int64) *table {
	return &table{bytes, make([]chunk, (bytes+chunkBytes-1)/chunkBytes)}
}

// length of chunk i in bytes; the last one may be short.
func (t *table) length(i int) int64 { return min(chunkBytes, t.bytes-int64(i)*chunkBytes) }

func (t *table) usedPages() int64 {
	n := 0
	for i := range t.chunks {
		n += t.chunks[i].count()
	}
	return int64(n)
}

func tableSize(bytes int64) int64 {
	return tableHeader + chunkRecord*((bytes+chunkBytes-1)/chunkBytes) + sumRecord
}

// marshal returns the table's bytes and the checksum they end in, which is the template's ID.
func (t *table) marshal() ([]byte, Hash) {
	b := make([]byte, 0, tableSize(t.bytes))
	b = append(b, tableMagic...)
	b = le.AppendUint32(b, tableVersion)
	b = le.AppendUint32(b, PageSize)
	b = le.AppendUint64(b, uint64(t.bytes))
	b = le.AppendUint32(b, chunkBytes)
	b = le.AppendUint32(b, uint32(len(t.chunks)))
	b = le.AppendUint64(b, uint64(t.usedPages()))
	b = append(b, make([]byte, tableHeader-len(b))...)
	for _, c := range t.chunks {
		for _, w := range c.used {
			b = le.AppendUint64(b, w)
		}
		b = appendHash(b, c.hash)
	}
	id := xxh3.Hash128(b)
	return appendHash(b, id), id
}

// parseTable reads the table of a template of that many bytes.
func parseTable(b []byte, bytes int64) (*table, Hash, error) {
	none := Hash{}
	if int64(len(b)) != tableSize(bytes) || string(b[:8]) != tableMagic {
		return nil, none, badTemplate("it does not end in the table of a memory of %d bytes", bytes)
	}
	// The checksum comes first: a damaged version number is not a new version.
	sum := len(b) - sumRecord
	id := hashAt(b[sum:])
	if xxh3.Hash128(b[:sum]) != id {
		return nil, none, badTemplate("the checksum of its table does not match")
	}
	if v := le.Uint32(b[8:]); v != tableVersion {
		return nil, none, fault.New(fault.FailedPrecondition, "", "", fmt.Sprintf("format version %d, this build reads %d", v, tableVersion))
	}
	t := newTable(bytes)
	for i := range t.chunks {
		r := b[tableHeader+i*chunkRecord:]
		for w := range t.chunks[i].used {
			t.chunks[i].used[w] = le.Uint64(r[w*8:])
		}
		t.chunks[i].hash = hashAt(r[chunkPages/8:])
	}
	// What the header repeats must agree, which also refuses bits past the end of the memory.
	if again, _ := t.marshal(); string(again) != string(b) || t.pastEnd() {
		return nil, none, badTemplate("its table contradicts itself")
	}
	return t, id, nil
}

func (t *table) pastEnd() bool {
	last := len(t.chunks) - 1
	for i := int(t.length(last) / PageSize); i < chunkPages; i++ {
		if t.chunks[last].has(i) {
			return true
		}
	}
	return false
}

func badTemplate(format string, args ...any) error {
	return fault.New(fault.DataLoss, "", "", "damaged: "+fmt.Sprintf(format, args...)).
		WithHint("put back a copy of the file; without it, `roost resume --cold ID` boots a sandbox paused from it from its disk")
}
