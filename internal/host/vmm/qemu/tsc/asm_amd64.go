package tsc

// rdtsc reads the counter, after all earlier loads.
func rdtsc() uint64

func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)
