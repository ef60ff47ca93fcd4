package census

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

func (c Census) addBlockDevices(s Scope) error {
	list, err := os.ReadDir("/sys/block")
	if err != nil {
		return err
	}
	for _, e := range list {
		dir := filepath.Join("/sys/block", e.Name())
		if backing := readLine(filepath.Join(dir, "loop/backing_file")); backing != "" && s.ours(backing) {
			c.addNamed(Loop, e.Name()+" over "+backing)
		}
		if name := readLine(filepath.Join(dir, "dm/name")); name != "" && s.named(name) {
			c.addNamed(DeviceMapper, name)
		}
	}
	return nil
}

// readLine reads an attribute of sysfs; one that is not there, or went away, is empty.
func readLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// mount is one line of /proc/self/mountinfo.
type mount struct{ id, root, point, kind, source string }

func mounts() ([]mount, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []mount
	for line := range strings.Lines(string(b)) {
		head, tail, _ := strings.Cut(line, " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if len(h) < 6 || len(t) < 2 {
			return nil, fmt.Errorf("read mountinfo: %q is not understood", line)
		}
		out = append(out, mount{h[2], unescape(h[3]), unescape(h[4]), t[0], unescape(t[1])})
	}
	return out, nil
}

// unescape undoes what the kernel writes for a space, tab, newline or backslash in a path.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func (c Census) addMounts(s Scope) error {
	list, err := mounts()
	if err != nil {
		return err
	}
	for _, m := range list {
		if s.ours(m.point) || s.ours(m.source) {
			c.addNamed(Mount, fmt.Sprintf("%s (%s of %s) on %s", m.kind, m.root, m.source, m.point))
		}
	}
	return nil
}

func (c Census) addFiles(s Scope) error {
	for _, root := range s.Temp {
		list, err := os.ReadDir(root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range list {
			if s.ours(filepath.Join(root, e.Name())) {
				c.addNamed(File, filepath.Join(root, e.Name()))
			}
		}
	}
	return nil
}

// addCgroups looks into every mounted hierarchy, of either version, once.
func (c Census) addCgroups(s Scope) error {
	list, err := mounts()
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, m := range list {
		if !strings.HasPrefix(m.kind, "cgroup") || seen[m.id] {
			continue
		}
		seen[m.id] = true
		err := filepath.WalkDir(m.point, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed while we looked
			}
			if err == nil && d.IsDir() && path != m.point && s.named(d.Name()) {
				c.addNamed(Cgroup, path)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
