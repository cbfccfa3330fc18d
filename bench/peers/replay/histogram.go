package main

import "math/bits"

// histogram counts durations in nanoseconds; a bucket is at most 1/128 of its value wide, as in an HDR histogram.
type histogram struct {
	counts [64 << subBits]uint32
	total  uint64
	sum    float64
	max    int64
}

const subBits = 7

func (h *histogram) record(value int64) {
	value = max(0, value)
	h.counts[bucket(uint64(value))]++
	h.total++
	h.sum += float64(value)
	h.max = max(h.max, value)
}

func bucket(value uint64) int {
	shift := max(0, bits.Len64(value)-subBits-1)
	return shift<<subBits + int(value>>shift)
}

// percentile is the upper end of the bucket that holds it (nearest rank), in nanoseconds.
func (h *histogram) percentile(percent float64) float64 {
	var below uint64
	for i, count := range h.counts {
		below += uint64(count)
		if count > 0 && float64(below) >= percent/100*float64(h.total) {
			shift := max(0, i>>subBits-1)
			return min(float64(h.max), float64(uint64(i-shift<<subBits+1)<<shift))
		}
	}
	return 0
}

func (h *histogram) milliseconds() map[string]any {
	if h.total == 0 {
		return map[string]any{}
	}
	return map[string]any{
		"p50_ms": h.percentile(50) / 1e6, "p95_ms": h.percentile(95) / 1e6, "p99_ms": h.percentile(99) / 1e6,
		"p999_ms": h.percentile(99.9) / 1e6, "max_ms": float64(h.max) / 1e6, "mean_ms": h.sum / float64(h.total) / 1e6,
	}
}
