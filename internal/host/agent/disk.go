package agent

import (
	"fmt"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/host/doctor"
	"github.com/roosthq/roost/internal/host/sandbox"
)

func toDisk(d sandbox.Disk) *hostv1.Disk {
	return &hostv1.Disk{
		Path: d.Path, TotalBytes: uint64(d.Total), FreeBytes: uint64(d.Free), //nolint:gosec // sizes of a disk
		UsedPercent: d.UsedPercent, State: string(d.State),
		WarnPercent: d.Limits.Warn, FullPercent: d.Limits.Full, ResumePercent: d.Limits.Resume,
		ReserveBytes: uint64(d.Reserve), ReserveWantedBytes: uint64(d.ReserveWanted), //nolint:gosec // as above
		Frozen: d.Frozen,
	}
}

// checkDisk is doctor's line on what a filling disk does to sandboxes.
func checkDisk(d sandbox.Disk) *hostv1.Check {
	out := &hostv1.Check{Name: "disk of sandboxes", Status: string(doctor.OK), Detail: fmt.Sprintf(
		"%s; %d MiB of %d MiB reserved for pauses", d.Text(), d.Reserve>>20, d.ReserveWanted>>20)}
	switch d.State {
	case sandbox.FillFull:
		out.Status, out.Hint = string(doctor.Fail), sandbox.MakeRoom
		out.Detail += fmt.Sprintf("; until it is below %.0f %% creates and snapshots are refused, and %d sandboxes stand still since they were writing",
			d.Limits.Resume, len(d.Frozen))
	case sandbox.FillFilling:
		out.Status, out.Hint = string(doctor.Warn), sandbox.MakeRoom
		out.Detail += fmt.Sprintf("; from %.0f %% creates and snapshots are refused and the fastest writers frozen", d.Limits.Full)
	}
	return out
}
