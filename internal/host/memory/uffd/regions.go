package uffd

import (
	"encoding/json"
	"fmt"
	"sort"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/memory"
)

// A VM has few regions: below the hole for devices, and above it.
const (
	maxRegions   = 64
	maxHandshake = 64 << 10
	// maxAddress is where the addresses of processes end, with five levels of page tables.
	maxAddress = 1 << 56
)

// region is a piece of the RAM in the VMM: size bytes at addr hold the memory from offset on.
type region struct{ addr, size, offset uint64 }

func (r region) end() uint64 { return r.addr + r.size }

// wireRegion is a region as Firecracker sends it. The second page size is one in bytes too, in
// spite of its name, in all versions until now; one in KiB is understood.
type wireRegion struct {
	BaseHostVirtAddr uint64 `json:"base_host_virt_addr"`
	Size             uint64 `json:"size"`
	Offset           uint64 `json:"offset"`
	PageSize         uint64 `json:"page_size"`
	PageSizeKiB      uint64 `json:"page_size_kib"`
}

func (w wireRegion) smallPages() bool {
	if w.PageSize != 0 {
		return w.PageSize == memory.PageSize
	}
	return w.PageSizeKiB == memory.PageSize || w.PageSizeKiB == memory.PageSize>>10
}

// parseRegions reads what a VMM says of its memory of bytes. It is not trusted.
func parseRegions(raw []byte, bytes int64) ([]region, error) {
	var wire []wireRegion
	if err := json.Unmarshal(raw, &wire); err != nil {
		return nil, refused("it is no list of regions: %v", err)
	}
	if len(wire) == 0 || len(wire) > maxRegions {
		return nil, refused("%d regions", len(wire))
	}
	out := make([]region, 0, len(wire))
	for i, w := range wire {
		if !w.smallPages() {
			return nil, refused("region %d has pages of %d (%d) bytes, only %d are served", i, w.PageSize, w.PageSizeKiB, memory.PageSize)
		}
		out = append(out, region{w.BaseHostVirtAddr, w.Size, w.Offset})
	}
	return out, checkRegions(out, bytes)
}

// checkRegions sorts regions by offset and refuses them unless they are the whole memory, each
// part of it once, at addresses that do not overlap.
func checkRegions(list []region, bytes int64) error {
	sort.Slice(list, func(i, j int) bool { return list[i].offset < list[j].offset })
	next := uint64(0)
	for i, r := range list {
		switch {
		case r.addr%memory.PageSize != 0 || r.size%memory.PageSize != 0 || r.size == 0 || r.addr == 0:
			return refused("region %d is not made of pages", i)
		case r.size > uint64(bytes) || r.addr > maxAddress || r.end() > maxAddress:
			return refused("region %d is larger than the memory, or lies where no process has any", i)
		case r.offset != next:
			return refused("region %d begins at %d, the one before ends at %d", i, r.offset, next)
		}
		next += r.size
	}
	if next != uint64(bytes) {
		return refused("its regions have %d bytes, the memory %d", next, bytes)
	}
	byAddr := append([]region(nil), list...)
	sort.Slice(byAddr, func(i, j int) bool { return byAddr[i].addr < byAddr[j].addr })
	for i := 1; i < len(byAddr); i++ {
		if byAddr[i].addr < byAddr[i-1].end() {
			return refused("regions overlap at %#x", byAddr[i].addr)
		}
	}
	return nil
}

func refused(format string, args ...any) error {
	return fault.New(fault.Invalid, "accept memory of", "VMM", fmt.Sprintf(format, args...))
}

// space translates between the VMM's addresses and pages of the memory.
type space []region // sorted by offset

// page is the number of the page at an address.
func (s space) page(addr uint64) (uint32, bool) {
	for _, r := range s {
		if addr >= r.addr && addr < r.end() {
			return uint32((addr - r.addr + r.offset) / memory.PageSize), true
		}
	}
	return 0, false
}

// at is where page n is, and the numbers of the first page of its region and of that behind it.
func (s space) at(n uint32) (addr uint64, first, end uint32) {
	off := uint64(n) * memory.PageSize
	i := sort.Search(len(s), func(i int) bool { return s[i].offset+s[i].size > off })
	r := s[i]
	return r.addr + off - r.offset, uint32(r.offset / memory.PageSize), uint32((r.offset + r.size) / memory.PageSize)
}

// pages calls do for each run of pages that a range of addresses covers.
func (s space) pages(start, end uint64, do func(first, count uint32)) {
	for _, r := range s {
		from, to := max(start, r.addr), min(end, r.end())
		if from < to {
			first := (from - r.addr + r.offset) / memory.PageSize
			do(uint32(first), uint32((to-from+memory.PageSize-1)/memory.PageSize))
		}
	}
}
