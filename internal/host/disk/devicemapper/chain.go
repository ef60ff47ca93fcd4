package devicemapper

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/dm"
	"github.com/roosthq/roost/internal/host/disk/devicemapper/loop"
	"github.com/roosthq/roost/internal/host/disk/layerfile"
)

// names are those of one live disk's devices: the top's is the beginning of all.
type names string

func (d *Driver) names(livePath string) names {
	sum := sha256.Sum256([]byte(filepath.Clean(livePath)))
	return names(fmt.Sprintf("%s%x", d.prefix, sum[:8]))
}

func (n names) top() string { return string(n) }

// level is the device of a layer, counted from 1; the origin is level 0.
func (n names) level(i int) string { return fmt.Sprintf("%s-%d", n, i) }

// device is one of ours, with what its table says.
type device struct {
	dm.Info
	sectors uint64
	// below is the number of the device it stands on: a base's loop for an origin.
	below uint64
	// cow is the number of the loop that has its changes; 0 for an origin.
	cow uint64
}

// chain is a live disk's devices, top first.
type chain []device

// look finds a device by name; nil when there is none.
func (d *Driver) look(name string) (*device, error) {
	info, err := d.dm.Info(name)
	if fault.Is(err, fault.NotFound) {
		return nil, nil //nolint:nilnil // there is none, which is no failure
	}
	if err != nil {
		return nil, err
	}
	v := &device{Info: info}
	if !info.LiveTable {
		return v, nil // somebody died before it had one
	}
	table, err := d.dm.Table(name)
	if fault.Is(err, fault.NotFound) {
		return nil, nil //nolint:nilnil // gone meanwhile
	}
	if err != nil {
		return nil, err
	}
	return v, v.read(table)
}

// read takes the numbers out of a table. One that is not of ours has none: it matches nothing.
func (v *device) read(table []dm.Target) error {
	for _, t := range table {
		v.sectors += t.Length
		words := strings.Fields(t.Params)
		var err error
		switch {
		case t.Type == "linear" && len(words) == 2:
			v.below, err = parseNumber(words[0])
		case t.Type == "snapshot" && len(words) >= 2:
			v.below, err = parseNumber(words[0])
			if err == nil {
				v.cow, err = parseNumber(words[1])
			}
		}
		if err != nil {
			return fault.Wrap(err, "read table of", "device "+v.Name)
		}
	}
	return nil
}

// parseNumber reads "7:3".
func parseNumber(s string) (uint64, error) {
	major, minor, _ := strings.Cut(s, ":")
	a, err := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	return unix.Mkdev(uint32(a), uint32(b)), errors.Join(err, err2)
}

// find finds the top of a live disk: the device whose changes go to its file. It has the name for
// it, or another: a Seal was interrupted, or the data directory has several names. nil: none.
func (d *Driver) find(livePath string) (*device, error) {
	info, err := os.Stat(livePath)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // a device of a file that is gone is nobody's top
	}
	if err != nil {
		return nil, layerfile.Failed(err, "look at", livePath)
	}
	v, err := d.look(d.names(livePath).top())
	if err != nil {
		return nil, err
	}
	if v != nil {
		writes, err := d.writes(*v, info)
		if err != nil || writes {
			return v, err
		}
	}
	return d.findByFile(info)
}

// writes tells whether a device's changes go to a file.
func (d *Driver) writes(v device, file os.FileInfo) (bool, error) {
	l, err := d.loopOf(v)
	return err == nil && l != nil && !l.ReadOnly && isFile(*l, file), err
}

// loopOf is the loop of a device's own file: its changes', or the base's; nil when it is not ours.
func (d *Driver) loopOf(v device) (*loop.Loop, error) {
	dev := v.cow
	if dev == 0 {
		dev = v.below
	}
	if dev == 0 {
		return nil, nil //nolint:nilnil // a device without a table
	}
	return d.loops.At(dev)
}

func isFile(l loop.Loop, file os.FileInfo) bool {
	st, ok := file.Sys().(*syscall.Stat_t)
	return ok && l.Dev == st.Dev && l.Inode == st.Ino
}

// findByFile goes from the file to its loop for writing to what stands on that.
func (d *Driver) findByFile(file os.FileInfo) (*device, error) {
	loops, err := d.loops.Of(file)
	if err != nil {
		return nil, err
	}
	for _, l := range loops {
		for _, holder := range l.Holders {
			if l.ReadOnly {
				continue
			}
			v, err := d.lookAt(holder)
			if err != nil {
				return nil, err
			}
			if v == nil {
				continue
			}
			writes, err := d.writes(*v, file)
			if err != nil || writes {
				return v, err
			}
		}
	}
	return nil, nil //nolint:nilnil // there is none, which is no failure
}

// lookAt finds one of our devices by the kernel's name, "dm-3".
func (d *Driver) lookAt(kernelName string) (*device, error) {
	list, err := d.dm.List()
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		if kernelName == fmt.Sprintf("dm-%d", unix.Minor(e.Dev)) && strings.HasPrefix(e.Name, d.prefix) {
			return d.look(e.Name)
		}
	}
	return nil, nil //nolint:nilnil // there is none, which is no failure
}

// chain follows a top's tables down to its origin.
func (d *Driver) chain(top device) (chain, error) {
	list, err := d.dm.List()
	if err != nil {
		return nil, err
	}
	byNumber := map[uint64]string{}
	for _, e := range list {
		if strings.HasPrefix(e.Name, d.prefix) {
			byNumber[e.Dev] = e.Name
		}
	}
	c := chain{top}
	for v := top; v.cow != 0; {
		name, found := byNumber[v.below]
		if !found {
			break
		}
		next, err := d.look(name)
		if err != nil {
			return nil, err
		}
		if next == nil {
			break
		}
		c, v = append(c, *next), *next
	}
	return c, nil
}

// matches tells whether a chain is what Attach would build for a live disk. The top's own file is
// what it was found by.
func (d *Driver) matches(c chain, live disk.Live, files stackFiles) (bool, error) {
	below := files.all()
	if len(c) != len(below)+1 {
		return false, nil
	}
	for i, v := range c {
		if v.sectors != sectors(live.SizeBytes) || v.Deferred || v.ReadOnly != (i > 0) {
			return false, nil
		}
		if i == 0 || v.below == 0 { // the origin of a base without one whole sector
			continue
		}
		l, err := d.loopOf(v)
		if err != nil || l == nil || !l.ReadOnly || !isFile(*l, below[len(below)-i]) {
			return false, err
		}
	}
	return true, nil
}

func sectors(bytes int64) uint64 { return uint64(bytes) / dm.SectorSize }
