package dm

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/failpoint"
)

// Info is a device's state.
type Info struct {
	Name, UUID string
	// Dev is its number, of which Major and Minor are the parts.
	Dev          uint64
	Major, Minor uint32
	// OpenCount counts who has it open: processes, mounts and tables above it.
	OpenCount int
	Suspended bool
	// Deferred: it goes when the last one closes it.
	Deferred bool
	ReadOnly bool
	// EventNr rises with each event of a target: a snapshot that became invalid.
	EventNr                  uint32
	LiveTable, InactiveTable bool
}

func (r reply) info() Info {
	h := r.header
	has := func(flag uint32) bool { return h.Flags&flag != 0 }
	return Info{
		Name: text(h.Name[:]), UUID: text(h.Uuid[:]),
		Dev: h.Dev, Major: unix.Major(h.Dev), Minor: unix.Minor(h.Dev),
		OpenCount: int(h.Open_count), EventNr: h.Event_nr,
		Suspended: has(unix.DM_SUSPEND_FLAG), Deferred: has(unix.DM_DEFERRED_REMOVE), ReadOnly: has(unix.DM_READONLY_FLAG),
		LiveTable: has(unix.DM_ACTIVE_PRESENT_FLAG), InactiveTable: has(unix.DM_INACTIVE_PRESENT_FLAG),
	}
}

// about is a call whose answer is the device's state. A failpoint that was hit comes as armed.
func (c *Control) about(cmd uint32, name string, armed error, req request) (Info, error) {
	if armed != nil {
		return Info{}, failed(armed, cmd, name)
	}
	if name == "" {
		return Info{}, failed(errNoName, cmd, name)
	}
	r, err := c.call(cmd, name, req)
	if err != nil {
		return Info{}, err
	}
	return r.info(), nil
}

// Create makes a device without a table. A name or UUID that is taken is fault.AlreadyExists.
func (c *Control) Create(ctx context.Context, name, uuid string) (Info, error) {
	if err := ctx.Err(); err != nil {
		return Info{}, failed(err, cmdCreate, name)
	}
	return c.about(cmdCreate, name, failpoint.Hit("devicemapper.ioctl.create"), request{uuid: uuid})
}

// Load puts a table beside the live one; Resume makes it live. It replaces an inactive table. A
// read-only table makes the device read-only, and opens what is below it for reading only.
func (c *Control) Load(ctx context.Context, name string, table []Target, readOnly bool) error {
	if err := ctx.Err(); err != nil {
		return failed(err, cmdLoad, name)
	}
	data, err := encodeTable(table)
	if err != nil {
		return failed(err, cmdLoad, name)
	}
	req := request{targets: uint32(len(table)), data: data}
	if readOnly {
		req.flags |= unix.DM_READONLY_FLAG
	}
	_, err = c.about(cmdLoad, name, failpoint.Hit("devicemapper.ioctl.load"), req)
	return err
}

// ClearTable drops the inactive table, if there is one; a device that has a live table then serves
// it, suspended or not.
//
// DM_TABLE_CLEAR would leave a device that a later rename and removal free twice: Linux 6.1 panics
// in dm_ima_measure_on_device_remove (create, load, resume, load, clear, rename, remove). So the
// live table is loaded once more and takes the inactive one's place; a snapshot hands its store over
// to itself.
func (c *Control) ClearTable(name string) error {
	info, err := c.Info(name)
	if err != nil || !info.InactiveTable {
		return err
	}
	if !info.LiveTable {
		_, err := c.call(cmdClear, name, request{})
		return err
	}
	table, err := c.Table(name)
	if err != nil {
		return err
	}
	// Not to be cancelled half way: the next Resume must not meet the other table.
	if err := c.Load(context.Background(), name, table, info.ReadOnly); err != nil {
		return err
	}
	_, err = c.Resume(name)
	return err
}

// Resume makes the inactive table live, if there is one, and lets I/O go on.
func (c *Control) Resume(name string) (Info, error) {
	return c.about(cmdSuspend, name, failpoint.Hit("devicemapper.ioctl.resume"), request{event: udevFlags})
}

// SuspendOptions say what Suspend leaves out.
type SuspendOptions struct {
	// NoFlush keeps I/O that is under way for the next table instead of waiting for it.
	NoFlush bool
	// SkipLockfs does not freeze a file system that the host has mounted from the device.
	SkipLockfs bool
}

// Suspend holds I/O to the device from now on and, without NoFlush, waits for what is under way.
// Suspending twice is once. It waits as long as the devices below take.
func (c *Control) Suspend(name string, o SuspendOptions) error {
	req := request{flags: unix.DM_SUSPEND_FLAG}
	if o.NoFlush {
		req.flags |= unix.DM_NOFLUSH_FLAG
	}
	if o.SkipLockfs {
		req.flags |= unix.DM_SKIP_LOCKFS_FLAG
	}
	_, err := c.about(cmdSuspend, name, failpoint.Hit("devicemapper.ioctl.suspend"), req)
	return err
}

// Rename gives the device another name; its number, node and UUID stay. A name that is taken is
// fault.AlreadyExists.
func (c *Control) Rename(name, to string) error {
	if err := checkName(to, maxName); err != nil {
		return failed(err, cmdRename, name)
	}
	_, err := c.about(cmdRename, name, failpoint.Hit("devicemapper.ioctl.rename"),
		request{event: udevFlags, data: append([]byte(to), 0)})
	return err
}

// Info tells a device's state; fault.NotFound when there is none of that name.
func (c *Control) Info(name string) (Info, error) {
	return c.about(cmdInfo, name, nil, request{})
}

// Status lists the live table's targets with their status as Params.
func (c *Control) Status(name string) ([]Target, error) { return c.targets(name, 0) }

// Table lists the live table's targets as they were loaded, devices as numbers.
func (c *Control) Table(name string) ([]Target, error) {
	return c.targets(name, unix.DM_STATUS_TABLE_FLAG)
}

func (c *Control) targets(name string, flags uint32) ([]Target, error) {
	r, err := c.call(cmdStatus, name, request{flags: flags})
	if err != nil {
		return nil, err
	}
	table, err := parseTargets(r.data, r.header.Target_count)
	if err != nil {
		return nil, failed(err, cmdStatus, name)
	}
	return table, nil
}

// Deps lists the numbers of the devices that the live table stands on.
func (c *Control) Deps(name string) ([]uint64, error) {
	r, err := c.call(cmdDeps, name, request{})
	if err != nil {
		return nil, err
	}
	devs, err := parseDeps(r.data)
	if err != nil {
		return nil, failed(err, cmdDeps, name)
	}
	return devs, nil
}

// List lists all devices of the host, whoever made them.
func (c *Control) List() ([]Entry, error) {
	r, err := c.call(cmdList, "", request{})
	if err != nil {
		return nil, err
	}
	list, err := parseNames(r.data)
	if err != nil {
		return nil, failed(err, cmdList, "")
	}
	return list, nil
}
