package export

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/roosthq/roost/internal/fault"
)

// mountPoints are the places below root where another file system lies, relative to it. Those of
// this thread's namespace: a test has one of its own.
func mountPoints(root string) (map[string]bool, error) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fault.Wrap(err, "read", "mounts")
	}
	defer func() { _ = f.Close() }()
	return parseMounts(f, root)
}

// parseMounts reads mountinfo, whose fifth field is where something is mounted.
func parseMounts(r io.Reader, root string) (map[string]bool, error) {
	found := map[string]bool{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		rel, err := filepath.Rel(root, unescape(fields[4]))
		if err == nil && rel != "." && filepath.IsLocal(rel) {
			found[rel] = true
		}
	}
	return found, fault.Wrap(lines.Err(), "read", "mounts")
}

// unescape undoes the kernel's octal for space, tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if b, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(b))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}
