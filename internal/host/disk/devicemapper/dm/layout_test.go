package dm

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

func TestRequestLayout(t *testing.T) {
	t.Parallel()
	buf, err := request{name: "roost-ab12-x", uuid: "ROOST-ab12-x", flags: 0x11, event: udevFlags, targets: 2, data: []byte("data")}.encode(firstBuffer)
	require.NoError(t, err)
	require.Len(t, buf, firstBuffer)
	u32 := func(offset int) uint32 { return binary.NativeEndian.Uint32(buf[offset:]) }
	// struct dm_ioctl of linux/dm-ioctl.h.
	require.Equal(t, []uint32{4, 0, 0}, []uint32{u32(0), u32(4), u32(8)})
	require.EqualValues(t, firstBuffer, u32(12), "data_size")
	require.EqualValues(t, 312, u32(16), "data_start")
	require.EqualValues(t, 2, u32(20), "target_count")
	require.EqualValues(t, 0x11, u32(28), "flags")
	require.EqualValues(t, 0x4f<<16, u32(32), "event_nr")
	require.Equal(t, "roost-ab12-x", text(buf[48:]))
	require.Equal(t, "ROOST-ab12-x", text(buf[48+128:]))
	require.Equal(t, "data", text(buf[312:]))
	require.EqualValues(t, 0xc138fd09, commandCode(cmdLoad))
}

func TestNamesThatDoNotFit(t *testing.T) {
	t.Parallel()
	for _, q := range []request{
		{name: strings.Repeat("n", 128)}, {name: "a/b"}, {name: "a\x00b"}, {uuid: strings.Repeat("u", 129)},
	} {
		_, err := q.encode(firstBuffer)
		require.True(t, fault.Is(err, fault.Invalid), "%v", err)
	}
	_, err := request{name: strings.Repeat("n", 127), uuid: strings.Repeat("u", 128)}.encode(firstBuffer)
	require.NoError(t, err)
	_, err = encodeTable([]Target{{0, 1, "a-type-of-16-byte", ""}})
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
	_, err = encodeTable([]Target{{0, 1, "linear", "7:0\x000"}})
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
}

func TestTableLayout(t *testing.T) {
	t.Parallel()
	table := []Target{
		Linear(0, 2048, unix.Mkdev(7, 3), 8),
		Zero(2048, 1024),
		Snapshot(3072, 8, unix.Mkdev(253, 300), unix.Mkdev(7, 257), true, 8),
	}
	require.Equal(t, "7:3 8", table[0].Params)
	require.Equal(t, "253:300 7:257 P 8", table[2].Params)
	data, err := encodeTable(table)
	require.NoError(t, err)
	require.Zero(t, len(data)%8)
	// What Load gives counts from each spec, what Status answers counts from the first.
	for offset := 0; offset < len(data); {
		size := int(binary.NativeEndian.Uint32(data[offset+20:]))
		binary.NativeEndian.PutUint32(data[offset+20:], uint32(offset+size))
		offset += size
	}
	again, err := parseTargets(data, 3)
	require.NoError(t, err)
	require.Equal(t, table, again)
	_, err = parseTargets(data, 4)
	require.Error(t, err)
}

func TestAnswersThatEndEarly(t *testing.T) {
	t.Parallel()
	u32 := func(values ...uint32) []byte {
		var b []byte
		for _, v := range values {
			b = binary.NativeEndian.AppendUint32(b, v)
		}
		return b
	}
	names := append(u32(5, 0, 16), "ab\x00\x00"...)
	names = append(names, append(u32(6, 0, 0), "cd\x00"...)...)
	list, err := parseNames(names)
	require.NoError(t, err)
	require.Equal(t, []Entry{{"ab", 5}, {"cd", 6}}, list)
	list, err = parseNames(u32(0, 0, 0))
	require.NoError(t, err)
	require.Empty(t, list)
	for cut := range 12 {
		_, err = parseNames(names[:16+cut])
		require.Error(t, err)
	}
	_, err = parseNames(u32(5, 0, 1, 0)) // a record inside another, for ever
	require.Error(t, err)
	_, err = parseDeps(u32(2, 0, 1, 0))
	require.Error(t, err)
	devs, err := parseDeps(u32(1, 0, 0x700, 0))
	require.NoError(t, err)
	require.Equal(t, []uint64{0x700}, devs)
	_, err = parseVersions(u32(4, 1, 2, 3))
	require.Error(t, err)
	_, err = decode(make([]byte, headerSize-1))
	require.Error(t, err)
}

func TestSnapshotStatus(t *testing.T) {
	t.Parallel()
	s, err := ParseSnapshotStatus("48/2048 16")
	require.NoError(t, err)
	require.Equal(t, SnapshotStatus{Used: 48, Total: 2048, Metadata: 16}, s)
	s, err = ParseSnapshotStatus("Invalid")
	require.NoError(t, err)
	require.True(t, s.Invalid)
	_, err = ParseSnapshotStatus("Unknown")
	require.Error(t, err)
}

// FuzzAnswer: no answer, however broken, makes a parser read beyond it or turn for ever.
func FuzzAnswer(f *testing.F) {
	table, err := encodeTable([]Target{Zero(0, 8), Linear(8, 8, 1793, 0)})
	require.NoError(f, err)
	seed, err := request{name: "n", targets: 2, data: table}.encode(firstBuffer)
	require.NoError(f, err)
	f.Add(seed)
	f.Add(append(seed[:headerSize:headerSize], 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'x', 0))
	f.Fuzz(func(_ *testing.T, buf []byte) {
		r, err := decode(buf)
		if err != nil {
			r.data = buf
		}
		_, _ = parseTargets(r.data, r.header.Target_count)
		_, _ = parseTargets(buf, uint32(len(buf)))
		_, _ = parseNames(r.data)
		_, _ = parseVersions(r.data)
		_, _ = parseDeps(r.data)
		_ = r.info()
	})
}
