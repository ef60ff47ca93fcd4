package dm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// The commands in use: the number in the ioctl's code (linux/dm-ioctl.h).
const (
	cmdVersion      = unix.DM_VERSION & 0xff
	cmdList         = unix.DM_LIST_DEVICES & 0xff
	cmdCreate       = unix.DM_DEV_CREATE & 0xff
	cmdRemove       = unix.DM_DEV_REMOVE & 0xff
	cmdRename       = unix.DM_DEV_RENAME & 0xff
	cmdSuspend      = unix.DM_DEV_SUSPEND & 0xff // and resume: the flag tells them apart
	cmdInfo         = unix.DM_DEV_STATUS & 0xff
	cmdLoad         = unix.DM_TABLE_LOAD & 0xff
	cmdClear        = unix.DM_TABLE_CLEAR & 0xff
	cmdDeps         = unix.DM_TABLE_DEPS & 0xff
	cmdStatus       = unix.DM_TABLE_STATUS & 0xff
	cmdListVersions = unix.DM_LIST_VERSIONS & 0xff
	lastCommand     = cmdListVersions
)

func commandCode(cmd uint32) uint32 { return unix.DM_VERSION | cmd }

func commandName(cmd uint32) string {
	names := map[uint32]string{
		cmdVersion: "version", cmdList: "list", cmdCreate: "create", cmdRemove: "remove", cmdRename: "rename",
		cmdSuspend: "suspend or resume", cmdInfo: "info", cmdLoad: "load", cmdClear: "clear", cmdDeps: "deps",
		cmdStatus: "status", cmdListVersions: "targets",
	}
	return names[cmd]
}

const (
	headerSize = unix.SizeofDmIoctl
	specSize   = unix.SizeofDmTargetSpec

	// firstBuffer holds what one device has to say; a list of many devices needs more.
	firstBuffer   = 4 << 10
	largestBuffer = 16 << 20

	// maxName and maxUUID are without the final NUL.
	maxName = unix.DM_NAME_LEN - 1
	maxUUID = unix.DM_UUID_LEN - 1
)

// Flags for udev, which a cookie of libdevmapper's carries in its upper half; the kernel hands
// them to udev with the event (DM_COOKIE). The lower half would name a semaphore that udev
// raises when it is done: nobody waits for udev here, it is zero.
const (
	// No links in /dev/mapper.
	udevDisableDM = 0x0001
	// No rules of a subsystem (LVM's scan for physical volumes).
	udevDisableSubsystem = 0x0002
	// No links in /dev/disk, and no blkid: the host must not parse a guest's file system.
	udevDisableDisk = 0x0004
	// No other rules: systemd does not wait for it, nothing mounts it.
	udevDisableOther = 0x0008
	// The event is its maker's own: udev keeps the flags above for events that come without any
	// (a "change" that closing a device written to makes).
	udevPrimarySource = 0x0040

	udevFlags = (udevDisableDM | udevDisableSubsystem | udevDisableDisk | udevDisableOther | udevPrimarySource) << 16
)

// request is what an ioctl is given.
type request struct {
	name, uuid string
	flags      uint32
	// event is event_nr: udev's flags where the kernel sends an event.
	event   uint32
	targets uint32
	data    []byte
}

// encode lays the request out in a buffer of at least size bytes.
func (q request) encode(size int) ([]byte, error) {
	if err := checkName(q.name, maxName); err != nil {
		return nil, err
	}
	if err := checkName(q.uuid, maxUUID); err != nil {
		return nil, err
	}
	buf := make([]byte, max(size, headerSize+len(q.data)))
	h := unix.DmIoctl{
		Version:      [3]uint32{unix.DM_VERSION_MAJOR, 0, 0},
		Data_size:    uint32(len(buf)),
		Data_start:   headerSize,
		Target_count: q.targets,
		Flags:        q.flags,
		Event_nr:     q.event,
	}
	copy(h.Name[:], q.name)
	copy(h.Uuid[:], q.uuid)
	copy(buf, unsafe.Slice((*byte)(unsafe.Pointer(&h)), headerSize))
	copy(buf[headerSize:], q.data)
	return buf, nil
}

// checkName refuses what does not fit, and what another name could hide in.
func checkName(name string, most int) error {
	if len(name) > most {
		return fault.New(fault.Invalid, "use", "name "+name, fmt.Sprintf("it has %d bytes, %d fit", len(name), most))
	}
	if strings.ContainsAny(name, "/\x00") {
		return fault.New(fault.Invalid, "use", fmt.Sprintf("name %q", name), "it holds a slash or a zero byte")
	}
	return nil
}

// encodeTable lays out targets as DM_TABLE_LOAD takes them: each spec's next counts from itself.
func encodeTable(table []Target) ([]byte, error) {
	var out []byte
	for _, t := range table {
		if len(t.Type) >= unix.DM_MAX_TYPE_NAME || strings.ContainsRune(t.Params, 0) {
			return nil, fault.New(fault.Invalid, "use", fmt.Sprintf("target %q", t.Type), "its type is too long or its parameters hold a zero byte")
		}
		params := (len(t.Params) + 8) &^ 7 // with its NUL, aligned for the next spec
		spec := make([]byte, specSize+params)
		binary.NativeEndian.PutUint64(spec[0:], t.Start)
		binary.NativeEndian.PutUint64(spec[8:], t.Length)
		binary.NativeEndian.PutUint32(spec[20:], uint32(len(spec)))
		copy(spec[24:specSize], t.Type)
		copy(spec[specSize:], t.Params)
		out = append(out, spec...)
	}
	return out, nil
}

// text is the string up to the first NUL.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
