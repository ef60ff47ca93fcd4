//go:build linux

package main

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const disk = "/dev/vda"

var (
	memory  sync.Map // what poke stored
	buffers [][]byte // what fill allocated
	written atomic.Int64
)

// obey runs one command; its reply is one line.
func obey(verb string, args []string) (string, error) {
	switch verb {
	case "ping":
		return "pong", nil
	case "poke":
		memory.Store(args[0], args[1])
		return "ok", nil
	case "peek":
		v, _ := memory.Load(args[0])
		return fmt.Sprint(v), nil
	case "fill":
		return "ok", fill(args[0])
	case "mark":
		return "ok", mark(args[0], args[1])
	case "marked":
		return marked(args[0]), nil
	case "write":
		return "ok", writeDisk(number(args[0]), []byte(args[1]))
	case "read":
		return readDisk(number(args[0]))
	case "hammer":
		return "ok", hammer(number(args[0]))
	case "written":
		return strconv.FormatInt(written.Load(), 10), nil
	case "size":
		return diskSize()
	case "show":
		raw, err := os.ReadFile(args[0])
		return strings.Join(strings.Fields(string(raw)), " "), err
	case "clock":
		return strconv.FormatInt(time.Now().UnixNano(), 10), nil
	case "sleep":
		began := time.Now()
		time.Sleep(time.Duration(number(args[0])) * time.Millisecond)
		return strconv.FormatInt(time.Since(began).Milliseconds(), 10), nil
	case "random":
		b := make([]byte, 16)
		_, err := rand.Read(b)
		return hex.EncodeToString(b), err
	case "print":
		return "ok", printLines(number(args[0]), args[1])
	case "panic":
		return "", os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case "poweroff":
		return "", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "reboot":
		return "", unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	return "", errors.New("unknown command " + verb)
}

func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// fill makes as many MiB of fresh, non-zero pages.
func fill(mb string) error {
	b := make([]byte, number(mb)<<20)
	for i := 0; i < len(b); i += 4096 {
		b[i] = byte(i>>12) | 1
	}
	buffers = append(buffers, b)
	return nil
}

// mark fills as many MiB of fresh pages with a text, over and over.
func mark(mb, text string) error {
	b, err := unix.Mmap(-1, 0, int(number(mb))<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	for page := range slices.Chunk(b, block) {
		copy(page, markedPage(text))
	}
	memory.Store("mark "+text, b)
	return nil
}

func markedPage(text string) []byte {
	return bytes.Repeat([]byte(text+" "), block/(len(text)+1))
}

// marked is how many MiB still hold a text, every byte of it.
func marked(text string) string {
	b, _ := memory.Load("mark " + text)
	pages, want := 0, markedPage(text)
	all, _ := b.([]byte)
	for page := range slices.Chunk(all, block) {
		if bytes.HasPrefix(page, want) {
			pages++
		}
	}
	return strconv.Itoa(pages * block >> 20)
}

const block = 4096

// writeDisk writes text as one block; it returns once the disk has flushed it.
func writeDisk(index int64, text []byte) error {
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, block)
	copy(b, text)
	if _, err := f.WriteAt(b, index*block); err != nil {
		return err
	}
	return f.Sync()
}

func readDisk(index int64) (string, error) {
	f, err := os.Open(disk)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, block)
	if _, err := f.ReadAt(b, index*block); err != nil {
		return "", err
	}
	return string(bytes.TrimRight(b, "\x00")), nil
}

// hammer writes block first+n with the text of n, one after the other, for ever; written tells
// the last n that the disk has flushed.
func hammer(first int64) error {
	go func() {
		for n := int64(1); ; n++ {
			if err := writeDisk(first+n, []byte("n"+strconv.FormatInt(n, 10))); err != nil {
				fmt.Fprintln(console, "hammer:", err)
				return
			}
			written.Store(n)
		}
	}()
	return nil
}

func diskSize() (string, error) {
	f, err := os.Open(disk)
	if err != nil {
		return "", err
	}
	defer f.Close()
	n, err := f.Seek(0, 2)
	return strconv.FormatInt(n, 10), err
}

func printLines(n int64, text string) error {
	for i := range n {
		if _, err := fmt.Fprintf(console, "%s %d\n", text, i); err != nil {
			return err
		}
	}
	return nil
}
