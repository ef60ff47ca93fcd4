package memory

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// helperEnv makes this test binary play the VMM; see helper.
const helperEnv = "ROOST_MEMORY_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case "vmm":
		helper()
	case "intruder":
		intruder()
	default:
		goleak.VerifyTestMain(m)
	}
}

// helper maps descriptor 3 privately, prints the address and obeys: COMMAND PAGE COUNT SEED.
func helper() {
	st, err := os.NewFile(3, "mem").Stat()
	exitOn(err)
	mem, err := unix.Mmap(3, 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	exitOn(err)
	fmt.Printf("%d\n", addrOf(mem))
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var cmd string
		var page, count int
		var seed uint64
		_, err := fmt.Sscan(in.Text(), &cmd, &page, &count, &seed)
		exitOn(err)
		part := mem[page*PageSize : (page+count)*PageSize]
		switch cmd {
		case "fill":
			pattern(part, seed)
		case "zero":
			clear(part)
		case "read":
			seed = 0
			for i := 0; i < len(part); i += PageSize {
				seed += uint64(part[i])
			}
		case "discard":
			exitOn(unix.Madvise(part, unix.MADV_DONTNEED))
		case "huge":
			exitOn(unix.Madvise(part, unix.MADV_HUGEPAGE))
		case "pageout":
			exitOn(unix.Madvise(part, unix.MADV_PAGEOUT))
		}
		fmt.Println("ok")
	}
	os.Exit(0)
}

// pattern fills b with bytes that depend on seed and place, none of its pages zero.
func pattern(b []byte, seed uint64) {
	r := rand.NewPCG(seed, 1)
	for i := 0; i+8 <= len(b); i += 8 {
		le.PutUint64(b[i:], r.Uint64()|1)
	}
}

// intruder runs under an unprivileged uid with the template as descriptor 3 and tries all it
// can to change it; it names each attempt that worked.
func intruder() {
	fd, err := unix.Open("/proc/self/fd/3", unix.O_RDWR, 0)
	exitOn(err) // QEMU 7.2 needs this open to work
	tries := map[string]func() error{
		"write":    func() error { _, err := unix.Pwrite(fd, []byte("x"), 0); return err },
		"truncate": func() error { return unix.Ftruncate(fd, 0) },
		"grow":     func() error { return unix.Ftruncate(fd, 1<<30) },
		"punch": func() error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, PageSize)
		},
		"map": func() error {
			_, err := unix.Mmap(fd, 0, PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			return err
		},
		"chmod": func() error { return unix.Fchmod(fd, 0o777) },
		"open the agent's": func() error {
			_, err := unix.Open(os.Getenv("ROOST_AGENT_FD"), unix.O_WRONLY, 0)
			return err
		},
	}
	for name, try := range tries {
		if try() == nil {
			fmt.Println(name)
		}
	}
	os.Exit(0)
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "helper:", err)
		os.Exit(3)
	}
}
