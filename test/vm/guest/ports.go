package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

type ports struct{ stdout, stderr, control *os.File }

func openPorts() (ports, error) {
	var p ports
	for name, f := range map[string]**os.File{StdoutPort: &p.stdout, StderrPort: &p.stderr, ControlPort: &p.control} {
		opened, err := openPort(name)
		if err != nil {
			return ports{}, err
		}
		*f = opened
	}
	return p, nil
}

// openPort finds a port by its name, which the host tells some time after the driver is there.
func openPort(name string) (*os.File, error) {
	var node string
	err := await("serial port "+name, func() bool {
		files, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, file := range files {
			if have, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(have)) == name {
				node = filepath.Join("/dev", filepath.Base(filepath.Dir(file)))
				return true
			}
		}
		return false
	})
	if err != nil {
		return nil, err
	}
	// Not os.OpenFile: what blocks needs no poller, and depends less on the driver's.
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open port %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
