/* virtio-console with MULTIPORT: opens port 1 (QEMU: -device virtio-serial-device -device virtserialport,...) and echoes what arrives, or
 * hands it to the command line (vserial_commands) */
#include "virtio.h"
static struct q rx0, tx0, crx, ctx, rx, tx;
static u8 b0[QN][64], crb[QN][256], ctb[QN][8], rxb[QN][1024], txb[QN][1024];
static volatile u32 *m;
u64 vserial_echoed;
u8 vserial_commands;
struct ctl { u32 id; u16 event, value; };
enum { DEVICE_READY, PORT_ADD, PORT_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME };
static void out(struct q *q, u8 *buf, u32 n, u32 len) {
  u16 id = q->avail.idx % QN; q->d[id].addr = (u64)buf; q->d[id].len = len; q->d[id].flags = 0; q_post(q, id); m[0x50 / 4] = n;
}
static void control(u32 port, u16 event, u16 value) {
  while ((u16)(avail_idx(&ctx) - used_idx(&ctx)) >= QN) ;
  struct ctl *c = (struct ctl *)ctb[ctx.avail.idx % QN]; c->id = port; c->event = event; c->value = value; out(&ctx, (u8 *)c, 3, sizeof *c);
}
/* at most 1024 bytes; waits for a free buffer */
void vserial_send(const u8 *bytes, u32 n) {
  while ((u16)(avail_idx(&tx) - used_idx(&tx)) >= QN) ;
  u8 *t = txb[tx.avail.idx % QN]; for (u32 i = 0; i < n; i++) t[i] = bytes[i];
  out(&tx, t, 5, n);
}
void vserial_poll(void) {
  if (!m) return;
  virtio_ack(m);
  for (; crx.seen != used_idx(&crx); crx.seen++) {
    u16 id = crx.used.ring[crx.seen % QN].id; struct ctl c = *(struct ctl *)crb[id];
    q_post(&crx, id); m[0x50 / 4] = 2;
    if (c.event == PORT_ADD) { control(c.id, PORT_READY, 1); control(c.id, PORT_OPEN, 1); }
  }
  for (; rx.seen != used_idx(&rx); rx.seen++) {
    u16 id = rx.used.ring[rx.seen % QN].id; u32 len = rx.used.ring[rx.seen % QN].len;
    if (vserial_commands) { for (u32 i = 0; i < len; i++) vserial_byte(rxb[id][i]); }
    else { vserial_echoed += len; vserial_send(rxb[id], len); }
    q_post(&rx, id); m[0x50 / 4] = 4;
  }
}
static void feed(struct q *q, u8 *buf, u32 size, u32 n) { for (u32 i = 0; i < QN; i++) { q->d[i].addr = (u64)(buf + i * size); q->d[i].len = size; q->d[i].flags = 2; q_post(q, i); } m[0x50 / 4] = n; }
int vserial_init(u64 base, u32 gsi) {
  m = (u32 *)base; int e = virtio_begin(m, 3, 2); if (e) { m = 0; return e; }   /* VIRTIO_CONSOLE_F_MULTIPORT */
  virtio_queue(m, 0, &rx0); virtio_queue(m, 1, &tx0); virtio_queue(m, 2, &crx); virtio_queue(m, 3, &ctx); virtio_queue(m, 4, &rx); virtio_queue(m, 5, &tx);
  ioapic_route(gsi, 0x41);
  virtio_ok(m);
  feed(&rx0, b0[0], 64, 0); feed(&crx, crb[0], 256, 2); feed(&rx, rxb[0], 1024, 4);
  control(0xffffffff, DEVICE_READY, 1);
  return m[1];
}
