package vmmtest

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm"
)

func Scratch(b *testing.T, d vmm.Driver, fixtures Fixtures) {
	s := &suite{newDriver: func(testing.TB) vmm.Driver { return d }, fixtures: fixtures}
	tpl := s.newTemplate(b, func(g *guest) { g.ask(b, "poke who template"); time.Sleep(4 * time.Second); g.ask(b, "ping") })
	m := s.copyOf(b, tpl, diskMB)
	vm, err := d.Restore(b.Context(), m.cfg, tpl.state, nil)
	require.NoError(b, err)
	killAtEnd(b, vm)
	dump := func(w string) {
		o2, _ := exec.Command("python3", "/tmp/vk/dirty.py", fmt.Sprint(vm.Handle().PID)).CombinedOutput()
		fmt.Println(string(o2))
		out, _ := exec.Command("python3", "/tmp/vk/smaps.py", fmt.Sprint(vm.Handle().PID)).CombinedOutput()
		fmt.Println(w, string(out))
	}
	dump("loaded")
	t0 := time.Now()
	vm.Resume(b.Context())
	t1 := time.Now()
	g := m.reach(b)
	t2 := time.Now()
	g.ask(b, "ping")
	t3 := time.Now()
	time.Sleep(500*time.Millisecond)
	t3b := time.Now()
	g.ask(b, "ping")
	t4 := time.Now()
	g.ask(b, "ping")
	t5 := time.Now()
	g2 := m.reach(b)
	t6 := time.Now()
	g2.ask(b, "ping")
	t7 := time.Now()
	fmt.Println("cont", t1.Sub(t0), "connect", t2.Sub(t1), "ask", t3.Sub(t2), "ask2", t4.Sub(t3b), "ask3", t5.Sub(t4), "connect2", t6.Sub(t5), "ask", t7.Sub(t6))
	time.Sleep(2 * time.Second)
	dump("rest")
	_ = os.Stdout
}
