package memory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	pmPresent = 1 << 63
	pmSwapped = 1 << 62
	// pmFile is set for a page of the file itself. A page that the process wrote in a private
	// mapping is anonymous and has it clear.
	pmFile = 1 << 61
)

// scanArg is struct pm_scan_arg, pageRegion struct page_region (include/uapi/linux/fs.h).
type scanArg struct {
	size, flags, start, end, walkEnd    uint64
	vec                                 uint64
	vecLen, maxPages                    uint64
	inverted, mask, anyOf, returnedMask uint64
}

type pageRegion struct{ start, end, categories uint64 }

const (
	ioctlPagemapScan = 0xC0606610 // _IOWR('f', 16, struct pm_scan_arg)
	pageIsFile       = 1 << 2
	pageIsPresent    = 1 << 3
	pageIsSwapped    = 1 << 4
)

// private lists the pages of a mapping that are the process's own. With swapped false only
// those in RAM count.
func private(ctx context.Context, pagemap *os.File, m Mapping, swapped bool) ([]span, error) {
	list, err := scanIoctl(ctx, pagemap, m, swapped)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
		// A kernel before 6.7.
		return scanEntries(ctx, pagemap, m, swapped)
	}
	return list, err
}

// scanIoctl lets the kernel skip what is not there: an untouched gigabyte costs next to nothing.
func scanIoctl(ctx context.Context, pagemap *os.File, m Mapping, swapped bool) ([]span, error) {
	regions := make([]pageRegion, 1024)
	var pin runtime.Pinner
	pin.Pin(&regions[0])
	defer pin.Unpin()
	end := m.Addr + uint64(m.Bytes)
	arg := scanArg{
		start: m.Addr, end: end, vec: uint64(uintptr(unsafe.Pointer(&regions[0]))), vecLen: uint64(len(regions)),
		inverted: pageIsFile, mask: pageIsFile, anyOf: pageIsPresent,
	}
	if swapped {
		arg.anyOf |= pageIsSwapped
	}
	arg.size = uint64(unsafe.Sizeof(arg))
	var out []span
	for arg.start < end {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), ioctlPagemapScan, uintptr(unsafe.Pointer(&arg)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return nil, fmt.Errorf("scan pagemap: %w", errno)
		}
		for _, r := range regions[:n] {
			out = appendSpan(out, span{uint32((r.start - m.Addr) / PageSize), uint32((r.end - r.start) / PageSize)})
		}
		if arg.walkEnd <= arg.start {
			return nil, fmt.Errorf("scan pagemap: no progress at %#x", arg.start)
		}
		arg.start = arg.walkEnd
	}
	return out, nil
}

// scanEntries reads the entry of every page.
func scanEntries(ctx context.Context, pagemap *os.File, m Mapping, swapped bool) ([]span, error) {
	want := uint64(pmPresent)
	if swapped {
		want |= pmSwapped
	}
	entries := make([]uint64, 64<<10)
	pages := uint64(m.Bytes / PageSize)
	var out []span
	for done := uint64(0); done < pages; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		part := entries[:min(uint64(len(entries)), pages-done)]
		raw := unsafe.Slice((*byte)(unsafe.Pointer(&part[0])), len(part)*8)
		if _, err := pagemap.ReadAt(raw, int64(m.Addr/PageSize+done)*8); err != nil {
			return nil, fmt.Errorf("read pagemap: %w", err)
		}
		for i, e := range part {
			if e&want != 0 && e&pmFile == 0 {
				out = appendSpan(out, span{uint32(done) + uint32(i), 1})
			}
		}
		done += uint64(len(part))
	}
	return out, nil
}
