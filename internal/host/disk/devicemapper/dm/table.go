package dm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// SectorSize is the unit of every table.
const SectorSize = 512

// Target serves a range of a device, in sectors. In a table that Status gave, Params is the
// target's status instead.
type Target struct {
	Start, Length uint64
	Type, Params  string
}

// Number writes a device number as tables do: "7:0".
func Number(dev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
}

// Linear maps a range to dev, from its sector offset on.
func Linear(start, length, dev, offset uint64) Target {
	return Target{start, length, "linear", fmt.Sprintf("%s %d", Number(dev), offset)}
}

// Zero reads as zeros and swallows writes.
func Zero(start, length uint64) Target { return Target{start, length, "zero", ""} }

// Error fails all I/O.
func Error(start, length uint64) Target { return Target{start, length, "error", ""} }

// Snapshot keeps changes of origin in cow, in chunks of chunkSectors. A persistent one has its
// metadata in cow: what is there already is taken up, a cow that begins with zeros becomes a new
// store. In a read-only table cow must be a store already, and may be a read-only device.
func Snapshot(start, length, origin, cow uint64, persistent bool, chunkSectors uint64) Target {
	kind := "N"
	if persistent {
		kind = "P"
	}
	return Target{start, length, "snapshot", fmt.Sprintf("%s %s %s %d", Number(origin), Number(cow), kind, chunkSectors)}
}

// SnapshotStatus is a snapshot target's status. Sectors are of the cow device.
type SnapshotStatus struct {
	// Invalid: the store overflowed or could not be written; the snapshot is lost.
	Invalid bool
	// Used counts metadata too.
	Used, Total, Metadata uint64
}

// ParseSnapshotStatus reads the Params of a snapshot target that Status gave.
func ParseSnapshotStatus(text string) (SnapshotStatus, error) {
	var s SnapshotStatus
	switch text {
	case "Invalid", "Overflow", "Merge failed":
		return SnapshotStatus{Invalid: true}, nil
	}
	if n, err := fmt.Sscanf(text, "%d/%d %d", &s.Used, &s.Total, &s.Metadata); n != 3 {
		return SnapshotStatus{}, fmt.Errorf("snapshot status %q is not understood: %w", text, err)
	}
	return s, nil
}
