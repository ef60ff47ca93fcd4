package dm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reply is what an ioctl answered. The kernel is trusted, our idea of its layouts is not: every
// offset is checked.
type reply struct {
	header unix.DmIoctl
	// data begins at the answer's first record.
	data []byte
}

var errShort = errors.New("the kernel's answer is not understood: a record reaches beyond its end")

func decode(buf []byte) (reply, error) {
	var r reply
	if len(buf) < headerSize {
		return r, errShort
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&r.header)), headerSize), buf)
	start, end := uint64(r.header.Data_start), uint64(r.header.Data_size)
	if end > uint64(len(buf)) {
		return reply{}, errShort
	}
	if start < end {
		r.data = buf[start:end]
	}
	return r, nil
}

// at is the part of b from offset on, which must hold size bytes.
func at(b []byte, offset uint64, size int) ([]byte, error) {
	if offset > uint64(len(b)) || uint64(len(b))-offset < uint64(size) {
		return nil, errShort
	}
	return b[offset:], nil
}

// parseTargets reads count targets of DM_TABLE_STATUS: next counts from the first one.
func parseTargets(data []byte, count uint32) ([]Target, error) {
	var (
		table  []Target
		offset uint64
	)
	for range count {
		spec, err := at(data, offset, specSize)
		if err != nil {
			return nil, err
		}
		table = append(table, Target{
			Start:  binary.NativeEndian.Uint64(spec[0:]),
			Length: binary.NativeEndian.Uint64(spec[8:]),
			Type:   text(spec[24:specSize]),
			Params: text(spec[specSize:]),
		})
		next := uint64(binary.NativeEndian.Uint32(spec[20:]))
		if next < offset+specSize && len(table) < int(count) {
			return nil, fmt.Errorf("the kernel's answer is not understood: target %d is followed by one at %d", len(table), next)
		}
		offset = next
	}
	return table, nil
}

// Entry is one device of List.
type Entry struct {
	Name string
	// Dev is its number.
	Dev uint64
}

// parseNames reads DM_LIST_DEVICES: dev, next (from this record), name. No devices at all are
// one record whose number is zero, which the answer's size may leave out.
func parseNames(data []byte) ([]Entry, error) {
	const nameAt = 12
	if len(data) == 0 {
		return nil, nil
	}
	var list []Entry
	for {
		rec, err := at(data, 0, nameAt)
		if err != nil {
			return nil, err
		}
		dev := binary.NativeEndian.Uint64(rec)
		if dev == 0 {
			return list, nil
		}
		list = append(list, Entry{Name: text(rec[nameAt:]), Dev: dev})
		next := binary.NativeEndian.Uint32(rec[8:])
		if next == 0 {
			return list, nil
		}
		if data, err = at(data, uint64(next), nameAt); err != nil || next < nameAt {
			return nil, errShort
		}
	}
}

// parseVersions reads DM_LIST_VERSIONS: next (from this record), three numbers, name.
func parseVersions(data []byte) ([]TargetVersion, error) {
	const nameAt = 16
	var list []TargetVersion
	for {
		rec, err := at(data, 0, nameAt)
		if err != nil {
			return nil, err
		}
		var v [4]uint32
		for i := range v {
			v[i] = binary.NativeEndian.Uint32(rec[4*i:])
		}
		list = append(list, TargetVersion{text(rec[nameAt:]), fmt.Sprintf("%d.%d.%d", v[1], v[2], v[3])})
		if v[0] == 0 {
			return list, nil
		}
		if data, err = at(data, uint64(v[0]), nameAt); err != nil || v[0] < nameAt {
			return nil, errShort
		}
	}
}

// parseDeps reads DM_TABLE_DEPS: count, padding, numbers.
func parseDeps(data []byte) ([]uint64, error) {
	head, err := at(data, 0, 8)
	if err != nil {
		return nil, err
	}
	count := binary.NativeEndian.Uint32(head)
	if uint64(len(head)-8)/8 < uint64(count) {
		return nil, errShort
	}
	var devs []uint64
	for i := range count {
		devs = append(devs, binary.NativeEndian.Uint64(head[8+8*i:]))
	}
	return devs, nil
}
